"use strict";
// The gallery: one page of cards at a time, chosen and sorted by the form, and a larger view of one image.
// Everything shown comes from window.GALLERY (gallery.py) and enters the page as text, never as HTML.

document.addEventListener("DOMContentLoaded", () => {
  const app = document.getElementById("gallery-app");
  if (!app) return;
  if (!window.GALLERY) {
    document.getElementById("gallery-missing").hidden = false;
    return;
  }
  app.hidden = false;
  startGallery(app, window.GALLERY);
  performance.mark("gallery-shown");
});

function startGallery(app, data) {
  const { images, runs, outcomes } = data;
  const form = app.querySelector("form");
  const field = form.elements;
  const cards = app.querySelector(".cards");
  const count = app.querySelector(".count");
  const pager = app.querySelector(".pager");
  const dialog = app.querySelector("dialog");
  const STYLE_ONLY = ["opacity", "truth", "prediction"];

  let order = []; // positions of the images that pass the filters, sorted
  let page = 0;
  let zoomed = 0; // place in `order` of the image in the larger view

  // ---- options of the form

  const isTest = (fold) => fold < 0; // test images belong to no fold
  const values = (column) => [...new Set(column)].sort((a, b) => (a > b) - (a < b));
  const fill = (name, options) =>
    options.forEach(([value, label]) => field[name].append(element("option", { value }, label)));
  fill("a", runs.map((run) => [run.name, run.name]));
  fill("b", runs.map((run) => [run.name, run.name]));
  fill("outcome", outcomes.map((name) => [name, name]));
  fill("fold", values(images.fold).map((fold) => [fold, isTest(fold) ? "test images" : `fold ${fold}`]));
  fill("view", values(images.view).map((view) => [view || "?", view || "unknown"]));
  fill("sex", values(images.sex).map((sex) => [sex || "?", sex || "unknown"]));
  field.b.closest("label").hidden = runs.length < 2;

  const state = () => Object.fromEntries(new FormData(form));
  const initial = state();

  // ---- choosing and sorting

  const runNamed = (name) => runs.find((run) => run.name === name);
  const chosenRuns = () => [runNamed(field.a.value), runNamed(field.b.value)].filter(Boolean);
  const share = (pixels, at) => (100 * pixels) / images.pixels[at];
  const given = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));

  function choose() {
    const now = state();
    const [a, b] = chosenRuns();
    const outcome = now.outcome ? outcomes.indexOf(now.outcome) : null;
    const ends = Object.fromEntries(
      ["area_from", "area_to", "dice_from", "dice_to"].map((name) => [name, given(now[name])]),
    );
    const text = now.id.trim().toLowerCase();
    const within = (value, from, to) =>
      (from === null || value >= from) && (to === null || value <= to);
    const passes = (at) =>
      (outcome === null || a.outcome[at] === outcome) &&
      (!now.fold || String(images.fold[at]) === now.fold) &&
      (!now.view || (images.view[at] || "?") === now.view) &&
      (!now.sex || (images.sex[at] || "?") === now.sex) &&
      within(share(images.true_px[at], at), ends.area_from, ends.area_to) &&
      within(a.dice[at], ends.dice_from, ends.dice_to) &&
      (!text || images.id[at].toLowerCase().includes(text));
    const keys = {
      dice: (at) => a.dice[at],
      difference: (at) => (b ? a.dice[at] - b.dice[at] : 0),
      true: (at) => share(images.true_px[at], at),
      predicted: (at) => share(a.predicted_px[at], at),
      fold: (at) => images.fold[at],
      id: (at) => images.id[at],
    };
    const key = keys[now.sort];
    const sign = now.order === "descending" ? -1 : 1;
    const keyed = [];
    for (let at = 0; at < images.id.length; at++) if (passes(at)) keyed.push([key(at), at]);
    // Ties keep the manifest's order.
    keyed.sort(([left, leftAt], [right, rightAt]) => sign * ((left > right) - (left < right)) || leftAt - rightAt);
    order = keyed.map(([, at]) => at);
  }

  // ---- drawing

  const percent = (pixels, at) => {
    const value = share(pixels, at);
    if (pixels === 0) return "0\u00a0%";
    return value < 0.01 ? "<\u00a00.01\u00a0%" : `${value.toFixed(2)}\u00a0%`;
  };
  const outcomeOf = (run, at) => outcomes[run.outcome[at]];

  function picture(run, at, { large = false } = {}) {
    const id = images.id[at];
    const file = encodeURIComponent(id);
    const thumbnail = `${data.thumbnails}/${file}.jpg`;
    const source = large && data.large ? `${data.large}/${file}.png` : thumbnail;
    const image = element("img", { src: source, alt: `Radiograph ${id}`, width: 256, height: 256 });
    if (source !== thumbnail) image.addEventListener("error", () => (image.src = thumbnail), { once: true });
    else image.loading = "lazy";
    const overlay = svg("svg", { viewBox: `0 0 ${data.grid} ${data.grid}`, "aria-hidden": "true", class: "overlay" });
    // Outlines run through pixel centres; a stroke one pixel wide covers the outer half of each border pixel.
    if (run.outline[at]) overlay.append(svg("path", { d: run.outline[at], class: "prediction" }));
    if (images.truth[at]) overlay.append(svg("path", { d: images.truth[at], class: "truth" }));
    return element("span", { class: "picture" }, image, overlay);
  }

  function facts(run, at) {
    const outcome = outcomeOf(run, at);
    return element(
      "div",
      { class: "facts" },
      element("b", { class: "run" }, run.name),
      element("span", { class: `outcome ${outcome.replace(" ", "-")}` }, outcome),
      element("span", {}, `Dice ${run.dice[at].toFixed(4)}`),
      element("span", {}, `predicted ${percent(run.predicted_px[at], at)}`),
    );
  }

  const about = (at) =>
    [
      isTest(images.fold[at]) ? "test image" : `fold ${images.fold[at]}`,
      images.view[at] || "view unknown",
      images.sex[at] || "sex unknown",
      `true ${percent(images.true_px[at], at)}`,
    ].join(" · ");

  function card(at, place) {
    const shown = chosenRuns();
    const open = element("button", { type: "button", class: "pair", "aria-label": `Enlarge ${images.id[at]}` });
    open.append(...shown.map((run) => picture(run, at)));
    open.addEventListener("click", () => zoomTo(place));
    return element(
      "li",
      { class: "card", "data-id": images.id[at] },
      open,
      element("div", { class: "pair" }, ...shown.map((run) => facts(run, at))),
      element("div", { class: "about" }, about(at)),
      element("div", { class: "id" }, images.id[at]),
    );
  }

  function draw() {
    const size = Number(field.size.value);
    const pages = Math.max(1, Math.ceil(order.length / size));
    page = Math.min(Math.max(0, page), pages - 1);
    const first = page * size;
    const shown = order.slice(first, first + size);
    app.classList.toggle("two", chosenRuns().length > 1);
    cards.replaceChildren(...shown.map((at, position) => card(at, first + position)));
    const all = images.id.length.toLocaleString("en");
    const found = order.length.toLocaleString("en");
    count.textContent = order.length
      ? `${first + 1} to ${first + shown.length} of ${found} images` + (found === all ? "" : ` (of ${all})`)
      : `None of ${all} images matches these filters.`;
    pager.querySelector(".number").textContent = `page ${page + 1} of ${pages}`;
    const [previous, next] = pager.querySelectorAll("button");
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
  }

  function restyle() {
    app.style.setProperty("--opacity", field.opacity.value / 100);
    app.querySelectorAll("output").forEach((output) => (output.textContent = `${field.opacity.value} %`));
    dialog.querySelector("input[type=range]").value = field.opacity.value;
    app.classList.toggle("no-truth", !field.truth.checked);
    app.classList.toggle("no-prediction", !field.prediction.checked);
  }

  function update() {
    choose();
    draw();
  }

  // ---- the larger view

  function zoomTo(place) {
    zoomed = Math.min(Math.max(0, place), order.length - 1);
    const at = order[zoomed];
    const shown = chosenRuns();
    dialog.querySelector("h3").textContent = images.id[at];
    dialog.querySelector(".about").textContent = about(at);
    dialog
      .querySelector(".large")
      .replaceChildren(
        ...shown.map((run) => element("figure", {}, picture(run, at, { large: true }), facts(run, at))),
      );
    const row = (run) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, run.name),
        element("td", {}, outcomeOf(run, at)),
        element("td", {}, run.dice[at].toFixed(4)),
        element("td", {}, percent(run.predicted_px[at], at)),
      );
    dialog.querySelector("tbody").replaceChildren(...runs.map(row));
    dialog.querySelector("[data-step='-1']").disabled = zoomed === 0;
    dialog.querySelector("[data-step='1']").disabled = zoomed === order.length - 1;
    if (!dialog.open) dialog.showModal();
  }

  dialog.addEventListener("click", (event) => {
    const step = event.target.dataset.step;
    if (step) zoomTo(zoomed + Number(step));
    else if (event.target === dialog || event.target.dataset.close !== undefined) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.type === "range") return; // the arrow keys move the slider
    if (event.key === "ArrowLeft") zoomTo(zoomed - 1);
    if (event.key === "ArrowRight") zoomTo(zoomed + 1);
  });
  dialog.querySelector("input[type=range]").addEventListener("input", (event) => {
    field.opacity.value = event.target.value;
    restyle();
    remember();
  });

  // ---- the address holds every setting that was changed, so that a view can be shared

  function remember() {
    const now = { ...state(), truth: String(field.truth.checked), prediction: String(field.prediction.checked) };
    const before = { ...initial, truth: "true", prediction: "true" };
    const changed = Object.entries(now).filter(([name, value]) => value !== before[name]);
    if (page > 0) changed.push(["page", String(page + 1)]);
    history.replaceState(null, "", changed.length ? `#${new URLSearchParams(changed)}` : "#gallery");
  }

  function recall() {
    if (!location.hash.includes("=")) return;
    form.reset();
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const input = field.namedItem(name);
      if (name === "page") page = (Number.parseInt(value, 10) || 1) - 1;
      else if (!input) continue;
      else if (input.type === "checkbox") input.checked = value === "true";
      else if (input.tagName !== "SELECT" || [...input.options].some((option) => option.value === value))
        input.value = value;
    }
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  function changed(event) {
    if ((event.type === "change") !== (event.target.tagName === "SELECT")) return; // one event per change
    restyle();
    if (!STYLE_ONLY.includes(event.target.name)) {
      page = 0;
      update();
    }
    remember();
  }
  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  // Not the form's reset event, which recall causes, too.
  form.querySelector("[type=reset]").addEventListener("click", () =>
    setTimeout(() => {
      page = 0;
      restyle();
      update();
      remember();
    }),
  );
  pager.addEventListener("click", (event) => {
    if (!event.target.dataset.turn) return;
    page += Number(event.target.dataset.turn);
    draw();
    remember();
    count.scrollIntoView({ block: "nearest" });
  });
  addEventListener("hashchange", () => {
    recall();
    restyle();
    update();
  });

  recall();
  restyle();
  update();
  if (location.hash.includes("=")) document.getElementById("gallery").scrollIntoView();
}

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
