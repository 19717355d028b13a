/** The settings of answers: kept in the browser. An empty field leaves the choice to the model. */

import { byId, h } from "./dom.js";
import { local } from "./memory.js";

const KEY = "qwq.settings";

// name of the field in the API -> label, hint, limits of the input, and the name of the model's own value
const FIELDS = [
  { name: "temperature", label: "Temperature", hint: "0 takes the likeliest token", min: 0, max: 10, step: "any", own: "temperature" },
  { name: "top_p", label: "Top-p", hint: "the likeliest tokens that reach this probability", min: 0.01, max: 1, step: "any", own: "top_p" },
  { name: "top_k", label: "Top-k", hint: "this many likeliest tokens; 0: all", min: 0, max: 1000000, step: 1, own: "top_k" },
  { name: "min_p", label: "Min-p", hint: "share of the likeliest token's probability", min: 0, max: 1, step: "any", own: "min_p" },
  { name: "presence_penalty", label: "Presence penalty", hint: "for tokens that came before", min: -100, max: 100, step: "any", own: "presence_penalty" },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "for each time that a token came", min: -100, max: 100, step: "any", own: "frequency_penalty" },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "above 1: less repetition", min: 0.01, max: 100, step: "any", own: "repetition_penalty" },
  { name: "seed", label: "Seed", hint: "the same seed gives the same answer", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, own: null, none: "random" },
  { name: "max_tokens", label: "Largest number of tokens", hint: "reasoning included", min: 1, max: 10000000, step: 1, own: null, none: "the rest of the context" },
];
const EFFORTS = [["", "The model's own"], ["none", "None: answer at once"], ["low", "Low"], ["medium", "Medium"], ["high", "High: no limit"]];

/** Return the settings that differ from the model's own: {system, ...fields of the API}. */
export function read() {
  try {
    const found = JSON.parse(local.get(KEY) ?? "{}");
    return Object.fromEntries(Object.entries(found).filter(([name, value]) => valid(name, value)));
  } catch {
    return {};
  }
}

function valid(name, value) {
  if (name === "system") return typeof value === "string";
  if (name === "reasoning_effort") return EFFORTS.some(([effort]) => effort === value);
  const field = FIELDS.find((each) => each.name === name);
  return field !== undefined && Number.isFinite(value) && value >= field.min && value <= field.max;
}

function write(settings) {
  local.set(KEY, JSON.stringify(settings));
}

/**
 * Show the dialog.
 * @param {object|null} model as /v1/models describes it; null: not known yet
 */
export function open(model) {
  const dialog = byId("settings");
  const now = read();
  const own = model?.qwq_ref?.sampling ?? {};
  const inputs = {};
  const system = h("textarea", { id: "set-system", rows: "3", dir: "auto" });
  system.value = now.system ?? "";
  const effort = h("select", { id: "set-effort" }, ...EFFORTS.map(([value, text]) => h("option", { value, text })));
  effort.value = now.reasoning_effort ?? "";
  effort.disabled = model?.qwq_ref?.reasoning === false;

  const rows = FIELDS.map((field) => {
    const { name, label, hint, min, max, step } = field;
    const placeholder = field.own === null ? field.none : name in own ? `model: ${own[field.own]}` : "the model's own";
    inputs[name] = h("input", { id: `set-${name}`, type: "number", min, max, step, placeholder, inputmode: "decimal", "aria-describedby": `hint-${name}` });
    inputs[name].value = now[name] ?? "";
    return h("div", { class: "field" }, h("label", { for: `set-${name}`, text: label }), inputs[name],
      h("span", { id: `hint-${name}`, class: "hint", text: hint }));
  });
  const reset = () => {
    for (const input of [...Object.values(inputs), system, effort]) input.value = "";
  };
  const save = () => {
    const settings = {};
    for (const [name, input] of Object.entries(inputs)) if (input.value !== "") settings[name] = Number(input.value);
    if (system.value.trim()) settings.system = system.value;
    if (effort.value) settings.reasoning_effort = effort.value;
    write(settings);
  };
  dialog.replaceChildren(h("form", { method: "dialog", on: { submit: (event) => {
    event.preventDefault(); // the policy of the page allows no form to send itself
    if (event.submitter?.value !== "cancel") save();
    dialog.close();
  } } },
    h("h2", { id: "settings-title", text: "Settings" }),
    h("p", { class: "quiet", text: "They hold for the next answers. An empty field leaves the choice to the model." }),
    h("div", { class: "field wide" }, h("label", { for: "set-system", text: "System prompt" }), system),
    h("div", { class: "field" }, h("label", { for: "set-effort", text: "Reasoning effort" }), effort,
      h("span", { class: "hint", text: "limits the length of the reasoning" })),
    h("div", { class: "fields" }, ...rows),
    h("div", { class: "dialog-buttons" },
      h("button", { type: "button", class: "plain-button", text: "Reset", on: { click: reset } }), h("span", { class: "grow" }),
      h("button", { type: "submit", value: "cancel", formnovalidate: true, class: "plain-button", text: "Cancel" }),
      h("button", { type: "submit", value: "save", class: "main-button", text: "Save" }))));
  dialog.showModal();
}

/** Return the body of a request. Without a seed in the settings, it gets a random one, so that it can be repeated. */
export function asBody(settings, messages, seed) {
  const { system, ...fields } = settings;
  return { ...fields, seed: seed ?? fields.seed ?? crypto.getRandomValues(new Uint32Array(1))[0], messages };
}
