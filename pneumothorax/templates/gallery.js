"use strict";
// A gallery: one page of cards at a time, chosen and sorted by the form, and a larger view of one image. What the images
// are, the page's own script says with an object:
//   ids                of the images; elsewhere an image is named by its position in them
//   choose(settings)   settings of the form -> { passes(at), key(at) }; a key of null comes last in either order
//   pictures(at)       the elements of a card's button
//   facts(at)          the elements below them
//   zoom(at, dialog)   fills the larger view, all but its title
// The page's HTML has the form, and in .more what the larger view shows below the pictures. Texts of the data enter the
// page as text, never as HTML.

const BELOW_THE_FORM = `
<div class="bar">
<p class="count" role="status"></p>
<div class="pager"><button class="plain" type="button" data-turn="-1">Previous</button><span class="number"></span><button class="plain" type="button" data-turn="1">Next</button></div>
</div>
<ol class="cards"></ol>
<dialog aria-labelledby="zoomed-title">
<div class="bar">
<div><h3 id="zoomed-title"></h3><div class="about"></div></div>
<div class="pager"><button class="plain" type="button" data-step="-1">Previous</button><button class="plain" type="button" data-step="1">Next</button><button class="plain" type="button" data-close>Close</button></div>
</div>
<label class="slider"><span>Opacity <output></output></span><input type="range" min="0" max="100"></label>
<div class="large"></div>
</dialog>`;

function startGallery(app, { ids, choose, pictures, facts, zoom }) {
  const form = app.querySelector("form");
  form.insertAdjacentHTML("afterend", BELOW_THE_FORM);
  const field = form.elements;
  const inputs = [...field].filter((input) => input.name);
  const boxes = inputs.filter((input) => input.type === "checkbox");
  const cards = app.querySelector(".cards");
  const count = app.querySelector(".count");
  const pager = app.querySelector(".pager");
  const dialog = app.querySelector("dialog");
  dialog.append(app.querySelector(".more"));

  let order = []; // positions of the images that pass the filters, sorted
  let page = 0;
  let zoomed = 0; // place in `order` of the image in the larger view

  const state = () =>
    Object.fromEntries(inputs.map((input) => [input.name, input.type === "checkbox" ? String(input.checked) : input.value]));
  const initial = state();

  function update() {
    const settings = state();
    const { passes, key } = choose(settings);
    const text = settings.id.trim().toLowerCase();
    const sign = settings.order === "descending" ? -1 : 1;
    const keyed = [];
    for (let at = 0; at < ids.length; at++)
      if ((!text || ids[at].toLowerCase().includes(text)) && passes(at)) keyed.push([key(at), at]);
    // Ties keep the order of `ids`.
    keyed.sort(
      ([left, leftAt], [right, rightAt]) =>
        (left === null) - (right === null) || sign * ((left > right) - (left < right)) || leftAt - rightAt,
    );
    order = keyed.map(([, at]) => at);
    draw();
  }

  // ---- drawing

  function card(at, place) {
    const open = element("button", { type: "button", class: "pair", "aria-label": `Enlarge ${ids[at]}` }, ...pictures(at));
    open.addEventListener("click", () => zoomTo(place));
    return element("li", { class: "card", "data-id": ids[at] }, open, ...facts(at), element("div", { class: "id" }, ids[at]));
  }

  function draw() {
    const size = Number(field.size.value);
    const pages = Math.max(1, Math.ceil(order.length / size));
    page = Math.min(Math.max(0, page), pages - 1);
    const first = page * size;
    const shown = order.slice(first, first + size);
    cards.replaceChildren(...shown.map((at, position) => card(at, first + position)));
    const all = ids.length.toLocaleString("en");
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
    boxes.forEach((box) => app.classList.toggle(`no-${box.name}`, !box.checked));
  }

  // ---- the larger view

  function zoomTo(place) {
    zoomed = Math.min(Math.max(0, place), order.length - 1);
    const at = order[zoomed];
    dialog.querySelector("h3").textContent = ids[at];
    zoom(at, dialog);
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
    const changed = Object.entries(state()).filter(([name, value]) => value !== initial[name]);
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
    if (!event.target.closest(".legend")) {
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

  app.hidden = false;
  recall();
  restyle();
  update();
  if (location.hash.includes("=")) document.getElementById("gallery").scrollIntoView();
  performance.mark("gallery-shown");
}

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
