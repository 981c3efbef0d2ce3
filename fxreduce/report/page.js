// Zooming the graphs, and showing what a merged operator was before. Without it all is still there.
"use strict";
for (const section of document.querySelectorAll("section")) (() => {
  const views = [...section.querySelectorAll(".scroll")];
  if (views.length !== 2) return;
  const [before, after] = views;
  const said = section.querySelector(".tools output");
  const merged = [...after.querySelectorAll("[data-from]")];
  const sizes = new Map();
  let chosen = -1;

  const size = (view) => {
    const svg = view.querySelector("svg");
    if (!sizes.has(view)) {
      sizes.set(view, { width: svg.width.baseVal.value, height: svg.height.baseVal.value, zoom: 1 });
    }
    return sizes.get(view);
  };
  const zoomTo = (view, zoom) => {
    const at = size(view), svg = view.querySelector("svg");
    const middle = (view.scrollTop + view.clientHeight / 2) / at.zoom;
    at.zoom = Math.min(4, Math.max(0.02, zoom));
    svg.setAttribute("width", at.width * at.zoom);
    svg.setAttribute("height", at.height * at.zoom);
    view.scrollTop = middle * at.zoom - view.clientHeight / 2;
  };
  const whole = (view) =>
    Math.min(view.clientWidth / size(view).width, view.clientHeight / size(view).height);

  const reveal = (view, node) => {
    const box = node.getBoundingClientRect(), frame = view.getBoundingClientRect();
    view.scrollTop += box.top - frame.top - frame.height / 3;
    view.scrollLeft += box.left - frame.left - (frame.width - box.width) / 2;
  };
  const choose = (number) => {
    for (const node of section.querySelectorAll(".chosen")) node.classList.remove("chosen");
    if (!merged.length) { said.textContent = "nothing was merged"; return; }
    chosen = (number + merged.length) % merged.length;
    const node = merged[chosen], labels = new Set(node.dataset.from.split(" "));
    const sources = [...before.querySelectorAll(".node")].filter((each) => labels.has(each.dataset.label));
    for (const each of [node, ...sources]) each.classList.add("chosen");
    reveal(after, node);
    if (sources.length) reveal(before, sources[0]);
    said.textContent = `${node.dataset.label}: ${[...labels].join(", ")}`;
  };

  const actions = {
    in: (view) => zoomTo(view, size(view).zoom * 1.25),
    out: (view) => zoomTo(view, size(view).zoom / 1.25),
    one: (view) => zoomTo(view, 1),
    fit: (view) => zoomTo(view, whole(view)),
  };
  const act = (name) => {
    if (name === "next") choose(chosen + 1);
    else if (name === "previous") choose(chosen - 1);
    else views.forEach(actions[name]);
  };
  const keys = { "+": "in", "=": "in", "-": "out", 1: "one", 0: "fit", n: "next", p: "previous" };
  for (const button of section.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => act(button.dataset.zoom));
  }
  for (const view of views) {
    view.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      act(keys[event.key]);
    });
    view.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // scrolling stays scrolling
      event.preventDefault();
      zoomTo(view, size(view).zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
    }, { passive: false });
    zoomTo(view, Math.min(1, Math.max(0.5, view.clientWidth / size(view).width)));
    view.scrollTop = 0;
  }
  after.addEventListener("click", (event) => {
    const node = event.target.closest("[data-from]");
    if (node) choose(merged.indexOf(node));
  });
})();
