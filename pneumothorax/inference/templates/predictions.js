
// The page of predict_radiographs.py: one image a card, with its mask, probability and area.

document.addEventListener("DOMContentLoaded", () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  startGallery(document.getElementById("gallery-app"), galleryOfPredictions(data));
});

function galleryOfPredictions({ paths, caution, images }) {
  const path = (kind, at) => paths[kind].replace("*", encodeURIComponent(images.image_id[at]));
  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });

  function probability(at) {
    const percent = 100 * images.p_positive[at];
    if (percent > 99.9) return ">\u00a099.9\u00a0%";
    return percent < 0.1 ? "<\u00a00.1\u00a0%" : `${percent.toFixed(1)}\u00a0%`;
  }

  function area(at) {
    const inPixels = images.area_px[at];
    const inMillimetres = images.area_mm2[at];
    if (inPixels === 0) return "empty mask";
    return inMillimetres === null ? `${number(inPixels)}\u00a0px` : `${number(inMillimetres)}\u00a0mm²`;
  }

  function marks(at) {
    const reason = images.not_a_radiograph[at];
    return reason ? [element("div", { class: "mark" }, `Not a radiograph: ${reason}`)] : [];
  }

  function picture(at) {
    const alt = `Radiograph ${images.image_id[at]}, ${area(at)}`;
    const [height, width] = [images.height[at], images.width[at]];
    const layers = [element("img", { src: path("radiograph", at), alt, width, height, loading: "lazy" })];
    if (images.area_px[at])
      layers.push(element("img", { src: path("mask", at), alt: "", width, height, loading: "lazy", class: "overlay" }));
    return element("span", caution ? { class: "picture", "data-caution": caution } : { class: "picture" }, ...layers);
  }

  const facts = (at) => [
    element("div", { class: "facts" }, element("b", {}, probability(at)), element("span", {}, area(at))),
    ...marks(at),
  ];

  function zoom(at, dialog) {
    const about = [
      `probability ${probability(at)}`,
      area(at),
      `${images.width[at]} × ${images.height[at]} pixels`,
      images.source[at],
    ];
    dialog.querySelector(".about").replaceChildren(about.join(" · "), ...marks(at));
    dialog.querySelector(".large").replaceChildren(element("figure", {}, picture(at)));
    dialog.querySelector("a").href = path("overlay", at);
  }

  const choose = ({ sort }) => ({ passes: () => true, key: (at) => images[sort][at] });
  return { ids: images.image_id, choose, pictures: (at) => [picture(at)], facts, zoom };
}
