// The galleries: what is shown and in what order, the slider over steps, and the large view.

const PAGE = innerWidth < 640 ? 8 : 24; // cards that are laid out at once; one column is long soon

/** What a gallery knows of its cards: which two samples are side by side, and by how much they differ. */
function gallery(name, content) {
  const last = content.steps.length - 1;
  const state = { step: last, reward: Object.keys(content.rewards)[0], dimension: "", way: "", low: 0, high: 1, words: "", order: "down", shown: PAGE };
  const found = {
    ...content, name, state, playing: false, scales: scales(content),
    both: (card) => [data.samples[card.samples[0]], data.samples[card.samples[state.step]]],
    names: () => [content.steps[0], content.steps[state.step]],
    /** Of the judge's total, or of a dimension; a pair's own gap where that is asked for. Null where missing. */
    change(card, reward = null, dimension = "") {
      if (!reward && !content.slider) return card.change;
      const [first, second] = found.both(card).map((sample) => {
        const by = reward || Object.keys(content.rewards)[0];
        return dimension === "" ? sample.totals[by] : sample.dimensions[by]?.[Number(dimension)];
      });
      return first === undefined || second === undefined ? null : second - first;
    },
  };
  found.digits = Math.min(3, decimals(Math.max(0, ...content.cards.map((card) => Math.abs(card.change)))));
  return found;
}

/** The cards that pass the filters, in order. */
function chosen(found) {
  const { state } = found;
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const reach = found.reach();
  const low = reach[0] + state.low * (reach[1] - reach[0]), high = reach[0] + state.high * (reach[1] - reach[0]);
  const slack = 1e-6 * (reach[1] - reach[0] || 1);
  const by = (card) => found.change(card, state.reward, state.dimension); // null: not scored, so neither way
  const rank = state.dimension === "" && !found.slider ? (card) => card.change : by;
  return found.cards
    .filter((card) => {
      const change = found.change(card), prompt = card.prompt.toLowerCase();
      const inside = change === null ? state.low === 0 && state.high === 1 : change >= low - slack && change <= high + slack;
      return inside && words.every((word) => prompt.includes(word))
        && (!state.way || (by(card) !== null && side(by(card)) === state.way));
    })
    .sort((a, b) => (rank(a) === null) - (rank(b) === null) || (state.order === "up" ? 1 : -1) * (rank(a) - rank(b)));
}

/** Bars of how many cards lie where between the least and the greatest change. */
function histogram(found, count = 30) {
  const [low, high] = found.reach(), heights = Array(count).fill(0);
  for (const change of found.changes()) heights[Math.min(count - 1, Math.floor(((change - low) / (high - low || 1)) * count))]++;
  const most = Math.max(1, ...heights);
  const inside = (k) => k + 1 > found.state.low * count && k < found.state.high * count;
  return h("svg", { class: "histogram", viewBox: `0 0 ${count} 10`, preserveAspectRatio: "none", "aria-hidden": "true" },
    heights.map((height, k) => h("rect", { class: inside(k) ? "in" : "out", x: k + 0.1, width: 0.8, y: 10 - (10 * height) / most, height: (10 * height) / most })));
}

function choice(label, options, value, change) {
  const select = h("select", { onchange: () => change(select.value) }, options.map(([key, text]) => h("option", { value: String(key), selected: String(key) === value }, text)));
  return h("label", {}, h("span", {}, label), select);
}

/** Lay a gallery out in `place`: its filters, its cards, and a button for more of them. */
function lay(place, name) {
  const found = gallery(name, data.galleries[name]), { state } = found;
  found.changes = () => found.cards.map((card) => found.change(card)).filter((change) => change !== null);
  found.reach = () => {
    const changes = found.changes();
    return changes.length ? [Math.min(...changes), Math.max(...changes)] : [0, 0];
  };
  const list = h("div", { class: "cards" }), count = h("output", {}), spread = h("div", { class: "range" });
  const more = h("button", { type: "button", class: "more", onclick: () => { state.shown += PAGE; draw(); } });
  let cards = [];

  function draw() {
    cards = chosen(found);
    list.replaceChildren(...cards.slice(0, state.shown).map((card) => article(found, card, (one) => enlarge(found, cards, one))));
    const left = cards.length - state.shown;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(PAGE, left)} more`;
    const of = found.of > found.cards.length ? ` (of ${found.of.toLocaleString("en")}, evenly spaced)` : "";
    count.textContent = `${cards.length} of ${found.cards.length}${of}`;
    const [low, high] = found.reach(), at = (share) => signed(low + share * (high - low), found.digits);
    spread.querySelector("svg").replaceWith(histogram(found));
    spread.querySelector("span").textContent = `${found.measure} from ${at(state.low)} to ${at(state.high)}`;
    if (found.playing) play(list, true);
  }
  const filter = (changes) => { Object.assign(state, changes, { shown: PAGE }); draw(); };
  const end = (key, label) => h("input", {
    type: "range", min: "0", max: "1", step: "0.01", value: String(state[key]), class: key, "aria-label": `${label} ${found.measure}`,
    oninput: (event) => filter({ [key]: key === "low" ? Math.min(+event.target.value, state.high) : Math.max(+event.target.value, state.low) }),
  });

  function tools() {
    const several = Object.keys(found.rewards).length > 1;
    spread.replaceChildren(h("span"), h("svg"), h("div", { class: "ends" }, end("low", "least"), end("high", "greatest")));
    return h("form", { class: "tools", role: "search", "aria-label": `Filter ${name}`, onsubmit: (event) => event.preventDefault() },
      several && choice("reward", Object.keys(found.rewards).map((key) => [key, key]), state.reward, (reward) => { filter({ reward, dimension: "", way: "" }); redo(); }),
      choice("dimension", [["", "total"], ...found.rewards[state.reward].dimensions.map((label, k) => [k, label])], state.dimension, (dimension) => filter({ dimension })),
      choice(`${found.slider ? "shown" : found.steps.at(-1)} is`, [["", "anything"], ["rise", "better"], ["same", "the same"], ["fall", "worse"]], state.way, (way) => filter({ way })),
      choice("order", [["down", "greatest first"], ["up", "least first"]], state.order, (order) => filter({ order })),
      h("label", {}, h("span", {}, "prompt"), h("input", { type: "search", value: state.words, placeholder: "words", oninput: (event) => filter({ words: event.target.value }) })),
      spread,
      data.media.some((source) => source.startsWith("data:video")) && h("label", { class: "check" },
        h("input", { type: "checkbox", checked: found.playing, onchange: (event) => { found.playing = event.target.checked; play(list, found.playing); } }), "play all"),
      h("div", { class: "count" }, count, h("button", { type: "button", onclick: () => { filter({ dimension: "", way: "", low: 0, high: 1, words: "", order: "down" }); redo(); } }, "Reset")));
  }
  /** Lay the filters out anew; the control that had the focus has it again. */
  function redo() {
    const form = place.querySelector("form"), held = [...form.elements].indexOf(document.activeElement);
    const fresh = tools();
    form.replaceWith(fresh);
    draw();
    fresh.elements[held]?.focus();
  }

  /** After the large view: the list shows the same step, and the card that was large has the focus. */
  found.closed = (card, moved) => {
    if (moved) place.querySelector(".stepper").replaceWith(stepper(found, draw));
    state.shown = Math.max(state.shown, cards.indexOf(card) + 1);
    draw();
    list.children[cards.indexOf(card)]?.focus();
  };
  count.setAttribute("aria-live", "polite");
  if (!found.cards.length) return place.replaceChildren(h("p", { class: "soft" }, "Nothing to show."));
  place.replaceChildren(...[found.slider && stepper(found, draw), tools(), list, more].filter(Boolean));
  draw();
}

/** The slider over steps; what moves is the second picture. */
function stepper(found, moved) {
  const { steps, state } = found, output = h("output", {}, steps[state.step]);
  const input = h("input", {
    type: "range", min: "0", max: String(steps.length - 1), step: "1", value: String(state.step), "aria-label": "step", "aria-valuetext": steps[state.step],
    oninput: () => {
      state.step = +input.value;
      output.textContent = steps[state.step];
      input.setAttribute("aria-valuetext", steps[state.step]);
      moved();
    },
  });
  return h("label", { class: "stepper" }, h("span", {}, steps[0]), input, h("span", {}, steps.at(-1)), h("span", { class: "now" }, "shown: ", output));
}

/** A card large, with the slider, its bars and its answers; the arrow keys go on to the next. */
function enlarge(found, cards, card) {
  const dialog = h("dialog", { class: "large", "aria-label": card.prompt });
  const { state } = found, begun = state.step;
  let at = cards.indexOf(card);
  const body = h("div", { class: "body" });
  const draw = () => {
    const one = cards[at], [first, second] = found.both(one), steps = found.names(), change = found.change(one);
    body.replaceChildren(
      figures(one, first, second, steps, true),
      h("p", { class: `sum ${side(change ?? 0)}` }, summary(found, change)),
      h("div", { class: "columns" }, h("div", {}, bars(found, first, second)), h("div", {}, answers(found, first, second, steps))));
    title.textContent = one.prompt;
    place.textContent = `${at + 1} of ${cards.length}`;
    if (!still) play(body, true);
  };
  const go = (by) => { at = (at + by + cards.length) % cards.length; draw(); };
  const title = h("h3"), place = h("span", { class: "soft" });
  dialog.append(
    h("header", {}, title, h("div", { class: "buttons" }, place,
      h("button", { type: "button", "aria-label": "previous", onclick: () => go(-1) }, "←"),
      h("button", { type: "button", "aria-label": "next", onclick: () => go(1) }, "→"),
      h("button", { type: "button", "aria-label": "close", onclick: () => dialog.close() }, "✕"))),
    ...(found.slider ? [stepper(found, draw)] : []), body);
  dialog.addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key) || ["INPUT", "VIDEO"].includes(event.target.tagName)) return;
    go(event.key === "ArrowRight" ? 1 : -1);
    event.preventDefault();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => { dialog.remove(); found.closed(cards[at], state.step !== begun); });
  document.body.append(dialog);
  draw();
  dialog.showModal();
}

for (const place of document.querySelectorAll("[data-gallery]")) lay(place, place.dataset.gallery);
