// One card: two samples of a prompt side by side, a bar for each dimension, and every question's answer.

/** Reward -> dimension -> [least, greatest] over a gallery's samples, so that equal places mean equal scores. */
function scales(gallery) {
  const found = {};
  for (const [reward, { dimensions }] of Object.entries(gallery.rewards)) {
    found[reward] = dimensions.map(() => [Infinity, -Infinity]);
    for (const card of gallery.cards)
      for (const number of card.samples)
        (data.samples[number].dimensions[reward] || []).forEach((value, k) => {
          const scale = found[reward][k];
          scale[0] = Math.min(scale[0], value);
          scale[1] = Math.max(scale[1], value);
        });
  }
  return found;
}

/** A picture, or a clip that plays without sound, again and again. */
function medium(sample, alt, controls = false) {
  const source = data.media[sample.media];
  if (!source.startsWith("data:video")) return h("img", { src: source, alt, draggable: false });
  const clip = h("video", { src: source, "aria-label": alt, preload: "auto", controls });
  clip.muted = clip.loop = clip.playsInline = true;
  return clip;
}

/** Start the clips inside an element together, or stop them. */
function play(element, on) {
  for (const clip of element.querySelectorAll("video")) {
    if (on) {
      clip.currentTime = 0;
      clip.play().catch(() => {}); // paused again before it began
    } else clip.pause();
  }
}

/** Two scores on an axis: a ring for the first sample, a dot for the second. */
function dumbbell(before, after, [low, high]) {
  const at = (value) => `${6 + 88 * (high > low ? (value - low) / (high - low) : 0.5)}%`;
  const label = `${fixed(before, 2)} → ${fixed(after, 2)}`;
  return h("svg", { class: `row ${side(after - before)}`, role: "img", "aria-label": label },
    h("title", {}, label),
    h("line", { class: "rail", x1: "6%", x2: "94%", y1: "50%", y2: "50%" }),
    h("line", { class: "span", x1: at(before), x2: at(after), y1: "50%", y2: "50%" }),
    h("circle", { class: "ring", cx: at(before), cy: "50%", r: 3.5 }),
    h("circle", { cx: at(after), cy: "50%", r: 4 }));
}

/** A table of bars for each reward that scored both samples. */
function bars(gallery, first, second) {
  return Object.entries(gallery.rewards).map(([reward, { dimensions }]) => {
    const before = first.dimensions[reward], after = second.dimensions[reward];
    if (!before || !after) return h("p", { class: "soft" }, `${reward}: no score`);
    return h("table", { class: "dims" }, h("caption", {}, reward), dimensions.map((name, k) => {
      const change = after[k] - before[k];
      return h("tr", {},
        h("th", { title: name, scope: "row" }, name),
        h("td", { class: "plot" }, dumbbell(before[k], after[k], gallery.scales[reward][k])),
        h("td", { class: "n" }, side(change) === "same" ? "=" : signed(change, gallery.digits)));
    }));
  });
}

/** Every question's answer for both samples, by reward; an ellipsis stands for the prompt. */
function answers(gallery, first, second, steps) {
  return Object.entries(gallery.rewards).map(([reward, { questions }]) => {
    const before = first.p_yes[reward], after = second.p_yes[reward];
    if (!before || !after || !questions.length) return null;
    const certain = [...before, ...after].every((p) => p === null || p === 0 || p === 1); // facts, not chances
    const cell = (p) => p === null ? "–" : `${p > 0.5 ? "yes" : "no"} ${certain ? "" : p.toFixed(2)}`;
    return h("table", { class: "asked" },
      h("thead", {}, h("tr", {}, h("th", {}, `asked by the ${reward}`), steps.map((step) => h("th", { class: "n" }, step)))),
      questions.map(([, words], k) => {
        const turned = before[k] !== null && after[k] !== null && before[k] > 0.5 !== after[k] > 0.5;
        const way = turned ? (after[k] > 0.5 ? "rise" : "fall") : "same";
        return h("tr", { class: way }, h("th", { scope: "row" }, words.replaceAll("[[prompt]]", "…")),
          h("td", { class: "n" }, cell(before[k])), h("td", { class: "n" }, cell(after[k]), turned ? ` ${MARK[way]}` : ""));
      }));
  });
}

/** The two figures of a card. */
function figures(card, first, second, steps, controls = false) {
  return h("div", { class: "two" }, [first, second].map((sample, k) =>
    h("figure", {}, medium(sample, `${steps[k]}: ${card.prompt}`, controls), h("figcaption", {}, steps[k]))));
}

/** A card's change in words; a sample that could not be scored has none. */
function summary(gallery, change) {
  return change === null ? "no score" : `${gallery.measure} ${signed(change, gallery.digits)}`;
}

/** A card of the list. Hover and focus show the answers beside it and play its clips; Enter opens it. */
function article(gallery, card, open) {
  const [first, second] = gallery.both(card), steps = gallery.names();
  const change = gallery.change(card), sum = summary(gallery, change);
  const element = h("article", { tabIndex: 0, "aria-label": `${card.prompt}; ${sum}. Enter shows it large.` },
    h("p", { class: "prompt", title: card.prompt }, card.prompt),
    figures(card, first, second, steps),
    h("p", { class: `sum ${side(change ?? 0)}` }, sum),
    bars(gallery, first, second));
  let waiting = null, beside = null;
  const show = () => {
    play(element, !still);
    if (beside || innerWidth < 640) return;
    beside = h("div", { class: "answers", role: "tooltip" }, answers(gallery, first, second, steps));
    const place = element.getBoundingClientRect();
    const right = innerWidth - place.right, width = 26 * 16;
    beside.classList.add(right > width ? "right" : place.left > width ? "left" : "below");
    element.append(beside);
  };
  const hide = () => {
    clearTimeout(waiting);
    if (!gallery.playing) play(element, false);
    beside?.remove();
    beside = null;
  };
  element.addEventListener("mouseenter", () => (waiting = setTimeout(show, 140)));
  element.addEventListener("mouseleave", hide);
  element.addEventListener("focus", () => element.matches(":focus-visible") && show());
  element.addEventListener("blur", hide);
  element.addEventListener("click", (event) => beside?.contains(event.target) || open(card));
  element.addEventListener("keydown", (event) => {
    if (event.target !== element) return;
    const to = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (to) element[to]?.focus();
    else if (event.key === "Enter") open(card);
    else if (event.key === "Escape") hide();
    else return;
    event.preventDefault();
  });
  return element;
}
