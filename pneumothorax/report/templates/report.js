"use strict";
// The report's gallery: one or two runs side by side on each image, with what window.GALLERY (gallery.py) says of them.

document.addEventListener("DOMContentLoaded", () => {
  const app = document.getElementById("gallery-app");
  if (!app) return;
  if (window.GALLERY) startGallery(app, galleryOfRuns(app, window.GALLERY));
  else document.getElementById("gallery-missing").hidden = false;
});

function galleryOfRuns(app, data) {
  const { images, runs, outcomes } = data;
  const field = app.querySelector("form").elements;

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

  // ---- choosing and sorting

  const runNamed = (name) => runs.find((run) => run.name === name);
  const chosenRuns = () => [runNamed(field.a.value), runNamed(field.b.value)].filter(Boolean);
  const share = (pixels, at) => (100 * pixels) / images.pixels[at];
  const given = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));

  function choose(now) {
    const [a, b] = chosenRuns();
    app.classList.toggle("two", Boolean(b));
    const outcome = now.outcome ? outcomes.indexOf(now.outcome) : null;
    const ends = Object.fromEntries(
      ["area_from", "area_to", "dice_from", "dice_to"].map((name) => [name, given(now[name])]),
    );
    const within = (value, from, to) =>
      (from === null || value >= from) && (to === null || value <= to);
    const passes = (at) =>
      (outcome === null || a.outcome[at] === outcome) &&
      (!now.fold || String(images.fold[at]) === now.fold) &&
      (!now.view || (images.view[at] || "?") === now.view) &&
      (!now.sex || (images.sex[at] || "?") === now.sex) &&
      within(share(images.true_px[at], at), ends.area_from, ends.area_to) &&
      within(a.dice[at], ends.dice_from, ends.dice_to);
    const keys = {
      dice: (at) => a.dice[at],
      difference: (at) => (b ? a.dice[at] - b.dice[at] : 0),
      true: (at) => share(images.true_px[at], at),
      predicted: (at) => share(a.predicted_px[at], at),
      fold: (at) => images.fold[at],
      id: (at) => images.id[at],
    };
    return { passes, key: keys[now.sort] };
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

  function scores(run, at) {
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

  const pictures = (at) => chosenRuns().map((run) => picture(run, at));

  const facts = (at) => [
    element("div", { class: "pair" }, ...chosenRuns().map((run) => scores(run, at))),
    element("div", { class: "about" }, about(at)),
  ];

  function zoom(at, dialog) {
    dialog.querySelector(".about").textContent = about(at);
    const figure = (run) => element("figure", {}, picture(run, at, { large: true }), scores(run, at));
    dialog.querySelector(".large").replaceChildren(...chosenRuns().map(figure));
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
  }

  return { ids: images.id, choose, pictures, facts, zoom };
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
