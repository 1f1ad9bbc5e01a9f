"use strict";
// Elements, numbers and the page's data. The scripts of a page are one after another in a single <script>.

const data = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes (`on...` are listeners) and children; null and false children are left out. */
function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "line", "circle", "rect", "path", "text", "title"].includes(tag) && attributes.svg !== 0;
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false || name === "svg") continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !svg && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const MINUS = "\u2212";
const ROUNDING = 1e-5; // differences below it are rounding

function fixed(value, digits) {
  return value.toFixed(digits).replace("-", MINUS);
}

function signed(value, digits = 2) {
  const rounded = Number(value.toFixed(digits));
  return (rounded < 0 ? MINUS : "+") + Math.abs(rounded).toFixed(digits);
}

/** How many decimals show three digits of `reach`, and at least one. */
function decimals(reach) {
  return reach > 0 ? Math.min(6, Math.max(1, 2 - Math.floor(Math.log10(reach)))) : 1;
}

/** "rise", "fall" or "same" of a change. */
function side(change) {
  return change > ROUNDING ? "rise" : change < -ROUNDING ? "fall" : "same";
}

const MARK = { rise: "▲", fall: "▼", same: "" };
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
