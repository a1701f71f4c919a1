// What breaks: buttons for the removed parts, and the answers that each of them changes. And where heads look.
// One file for two places: anywidget calls `render` in JupyterLab; on pages the last lines find the views.
const LABELS = { broken: "right → wrong", repaired: "wrong → right", changed: "other answer, same score", all: "all" };
const SCORED = { ...LABELS, broken: "worse", repaired: "better" };
const AT_ONCE = 60; // rows that are drawn before the reader scrolls on
const STRIP = 220; // pixels
const MOST_PARTS = 12; // that are listed for a text
const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥" }; // of white space

const make = (name, properties = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
};

const drawing = (name, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

// The words between what both texts begin and end with, in <mark>.
const marked = (text, whole) => {
  const [words, others] = [text, whole].map((x) => x.split(/(?<=\s)/));
  let [start, end] = [0, 0];
  const least = Math.min(words.length, others.length);
  while (start < least && words[start] === others[start]) start++;
  while (end < least - start && words.at(-1 - end) === others.at(-1 - end)) end++;
  const [before, between, after] = [words.slice(0, start), words.slice(start, words.length - end), words.slice(words.length - end)];
  const parts = [before.join("")];
  if (between.length) parts.push(start || end ? make("mark", {}, between.join("")) : between.join(""));
  return [...parts, end ? after.join("") : ""];
};

// Two texts without the white space around them; where white space is all that differs, it is shown.
const readable = (texts) => {
  const [some, other] = texts.map((text) => text.replace(/\s+/g, " ").trim());
  const hidden = some === other && texts[0] !== texts[1];
  return texts.map((text) => (hidden ? text.replace(/[ \n\t]/g, (c) => SIGNS[c]) : text.trim()) || "(nothing)");
};

const asked = (text) => {
  if (text.length <= 240) return [text];
  return [make("details", {}, make("summary", {}, `${text.slice(0, 200)}…`), text)];
};

// What the colours of the map stand for, from the largest gain to the largest loss.
const scale = (largest) => {
  const ends = [["gains", -largest], ["costs", largest]].map(([tone, loss]) => make("span", { className: `ramp ${tone}` }, number(loss)));
  return make("p", { className: "legend scale" }, "loss", ends[0], "0", ends[1]);
};

const number = (x) => (Math.abs(x) < 10 ? x.toFixed(2) : x.toFixed(0));

export const explore = (root, data, state, changed = () => {}) => {
  const heat = make("div", { className: "heat" });
  const say = make("p", { className: "say" });
  say.setAttribute("aria-live", "polite");
  const common = make("p", { className: "legend" });
  const chips = make("div", { className: "chips", role: "group", ariaLabel: "which answers" });
  const find = make("input", { type: "search", placeholder: "find text", ariaLabel: "find text in the answers" });
  const elsewhere = make("div", { className: "chips elsewhere", role: "group", ariaLabel: "other parts whose answers have the text" });
  const head = make("tr");
  const body = make("tbody");
  const more = make("button", { className: "chip", type: "button", hidden: true });
  const moves = [["← previous", -1], ["next →", 1]].map(([name, by]) => make("button", { className: "chip", type: "button", onclick: () => step(by) }, name));
  const table = make("table", {}, make("thead", {}, head), body);
  const legend = make("p", { className: "legend" }, data.legend);
  root.replaceChildren(heat, scale(data.scale), legend, say, common, make("div", { className: "bar" }, ...moves, chips, find), elsewhere, table, more);

  const task = () => data.tasks[state.task];
  const rowOf = () => task().rows.find((row) => row.cells.includes(state.condition)) ?? task().rows[0];
  const kinds = (one, condition) => {
    const found = { broken: [], repaired: [], changed: [], all: [] };
    const [whole, values, texts, own] = [one.values[0], one.values[condition], one.answers[0], one.answers[condition]];
    for (let i = 0; i < one.ids.length; i++) {
      const loss = (whole[i] - values[i]) * one.sign;
      found.all.push(i);
      if (loss > 0) found.broken.push(i);
      else if (loss < 0) found.repaired.push(i);
      else if (texts[i] !== own[i]) found.changed.push(i);
    }
    const nats = one.nats?.[condition];
    const loss = (i) => (whole[i] - values[i]) * one.sign;
    for (const list of Object.values(found)) list.sort((a, b) => loss(b) - loss(a) || (nats ? nats[a] - nats[b] : a - b));
    return found;
  };

  const cell = (at, one, condition) => {
    const [loss, low, high, critical] = one.losses[condition];
    const share = `${Math.round(100 * Math.min(1, Math.abs(loss) / data.scale))}%`;
    const now = at === state.task && condition === state.condition;
    const judged = one.at_chance ? `, ${one.at_chance}: cannot judge` : critical ? ", critical" : "";
    const name = `${one.conditions[condition]}, ${one.name}: loss ${number(loss)} [${number(low)}, ${number(high)}]${judged}`;
    const tone = one.at_chance ? "idle" : loss > 0 ? "costs" : "gains";
    const button = make("button", { className: `cell ${tone}`, type: "button", title: name, tabIndex: now ? 0 : -1 });
    button.setAttribute("aria-label", name);
    button.setAttribute("aria-pressed", now);
    button.style.setProperty("--share", share);
    if (critical) button.append("•");
    button.onclick = () => go({ task: at, condition }, true);
    return button;
  };

  const drawHeat = () => {
    const lines = [];
    data.tasks.forEach((one, at) => {
      const grid = one.rows.length > 1 && one.rows[0].grid;
      if (grid && data.tasks.length > 1) {
        const chip = make("button", { className: "chip", type: "button" }, one.name);
        chip.setAttribute("aria-pressed", at === state.task);
        chip.onclick = () => go({ task: at, condition: one.rows[0].cells[0] }, true);
        lines.push(make("div", { className: "wide" }, chip));
      }
      if (grid && at !== state.task) return;
      for (const row of one.rows) {
        const label = make("span", { className: "label" }, row.label);
        lines.push(label, make("div", { className: "cells" }, ...row.cells.map((c) => cell(at, one, c))));
        lines.push(make("span", { className: "score", title: `${one.metric} of the whole model` }, row.grid ? "" : number(one.score)));
      }
    });
    const ticks = task().rows[0].ticks.map((tick, i, all) => make("span", {}, i % Math.ceil(all.length / 12) ? "" : tick));
    lines.push(make("span", { className: "label" }), make("div", { className: "cells ticks", ariaHidden: "true" }, ...ticks), make("span"));
    heat.replaceChildren(...lines);
  };

  const strip = (one, i, row) => {
    const width = STRIP / row.cells.length;
    const broken = row.cells.map((c, k) => [c, k]).filter(([c]) => (one.values[0][i] - one.values[c][i]) * one.sign > 0);
    const path = broken.map(([, k]) => `M${((k + 0.5) * width).toFixed(1)} 0v14`).join("");
    const names = broken.slice(0, 40).map(([c]) => one.conditions[c]).join(", ");
    const label = broken.length ? `broken by ${broken.length} of ${row.cells.length}: ${names}` : "broken by none";
    const svg = drawing("svg", { width: STRIP, height: 14, viewBox: `0 0 ${STRIP} 14`, role: "img", "aria-label": label, class: "strip" });
    const at = row.cells.indexOf(state.condition);
    const stroke = Math.max(0.8, width - Math.min(1, width / 4)).toFixed(2);
    svg.append(drawing("title", {}, label), drawing("path", { d: path, "stroke-width": stroke }));
    if (at >= 0) svg.append(drawing("rect", { x: at * width, y: 0.5, width: Math.max(width, 2), height: 13 }));
    svg.onclick = (event) => {
      const place = Math.floor((event.offsetX / svg.clientWidth) * row.cells.length);
      if (row.cells[place] !== undefined) go({ condition: row.cells[place] });
    };
    return svg;
  };

  // The changed answers of all parts that have the text, part by part, those with most of them first.
  const drawElsewhere = (one, wanted) => {
    const has = one.texts.map((text) => wanted && text.toLowerCase().includes(wanted));
    const changed = (own) => own.filter((text, i) => has[text] && text !== one.answers[0][i]).length;
    const counts = wanted ? one.answers.map((own, c) => [c, changed(own)]).filter(([, n]) => n) : [];
    counts.sort(([, a], [, b]) => b - a);
    const parts = counts.slice(0, MOST_PARTS).map(([c, n]) => {
      const chip = make("button", { className: "chip", type: "button" }, `${one.conditions[c]} ${n}`);
      chip.setAttribute("aria-pressed", c === state.condition);
      chip.onclick = () => go({ condition: c, change: "all" });
      return chip;
    });
    const rest = counts.length > MOST_PARTS ? ` and ${counts.length - MOST_PARTS} more parts` : "";
    elsewhere.hidden = !wanted;
    elsewhere.replaceChildren(parts.length ? "In changed answers without: " : "No changed answer of any part has this text.", ...parts, rest);
  };

  let shown = [];
  let drawn = 0;
  const drawRows = () => {
    const [one, row] = [task(), rowOf()];
    for (const i of shown.slice(drawn, drawn + AT_ONCE)) {
      const value = (c) => one.values[c][i];
      const tone = (c) => (one.binary ? (value(c) > 0 === one.sign > 0 ? "right" : "wrong") : "");
      const [whole, own] = readable([0, state.condition].map((c) => one.texts[one.answers[c][i]]));
      const nats = one.nats ? ` (${number(one.nats[state.condition][i])} nats)` : "";
      const scored = one.binary ? "" : ` (${number(value(state.condition) - value(0))})`;
      const cells = [
        [String(one.ids[i])], asked(one.questions[i]), [one.references[i]], [whole],
        [...marked(own, whole), make("small", {}, nats + scored)], [strip(one, i, row)],
      ];
      const classes = ["id", "", "", tone(0), tone(state.condition), ""];
      const line = cells.map((content, k) => {
        const td = make("td", { className: classes[k], dir: "auto" }, ...content);
        td.setAttribute("data-label", head.children[k].textContent);
        return td;
      });
      body.append(make("tr", {}, ...line));
    }
    drawn = Math.min(drawn + AT_ONCE, shown.length);
    more.hidden = drawn === shown.length;
    more.textContent = `${shown.length - drawn} more`;
  };

  const draw = () => {
    const one = task();
    const found = kinds(one, state.condition);
    const name = one.conditions[state.condition];
    const labels = one.binary ? LABELS : SCORED;
    const words = one.binary ? ["break", "become right", "others change"] : ["get worse", "get better", "change at the same score"];
    say.replaceChildren("Without ", make("b", {}, name), ", ", make("b", { className: "wrong" }, String(found.broken.length)),
      ` of ${one.ids.length} answers to ${one.name} ${words[0]}, `, make("b", { className: "right" }, String(found.repaired.length)),
      ` ${words[1]}, ${found.changed.length} ${words[2]}.`, one.at_chance ? ` The whole model is ${one.at_chance}, so this judges nothing.` : "",
      state.missing ? ` (${state.missing} is not in this sweep.)` : "");
    common.textContent = one.common[name] ?? "";
    chips.replaceChildren(...Object.entries(labels).map(([key, label]) => {
      const chip = make("button", { className: "chip", type: "button" }, `${label} ${found[key].length}`);
      chip.setAttribute("aria-pressed", key === state.change);
      chip.onclick = () => go({ change: key });
      return chip;
    }));
    const columns = ["#", "question", "right answer", "whole model", `without ${name}`, "broken by"];
    head.replaceChildren(...columns.map((column) => make("th", { scope: "col" }, column)));
    const wanted = (state.find ?? "").toLowerCase();
    const text = (i) => [one.questions[i], one.references[i], one.texts[one.answers[0][i]], one.texts[one.answers[state.condition][i]]];
    shown = found[state.change].filter((i) => !wanted || text(i).join("\n").toLowerCase().includes(wanted));
    drawElsewhere(one, wanted);
    drawn = 0;
    body.replaceChildren();
    drawRows();
  };

  const go = (update, focus = false) => {
    Object.assign(state, { missing: "" }, update);
    if (find.value !== (state.find ?? "")) find.value = state.find ?? "";
    drawHeat();
    draw();
    if (focus) heat.querySelector(".cell[aria-pressed=true]")?.focus();
    changed({ ...state, name: task().conditions[state.condition], task_name: task().name });
  };

  const step = (by, focus = false) => {
    const { cells } = rowOf();
    const next = cells[cells.indexOf(state.condition) + by];
    if (next !== undefined) go({ condition: next }, focus);
  };

  heat.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const row = rowOf();
    const rows = data.tasks.flatMap((one, t) => (one.rows[0].grid && t !== state.task ? [] : one.rows.map((r) => [t, r])));
    const ends = { Home: row.cells[0], End: row.cells.at(-1) };
    if (by) step(by, true);
    else if (event.key in ends) go({ condition: ends[event.key] }, true);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const [t, other] = rows[rows.findIndex(([, r]) => r === row) + (event.key === "ArrowDown" ? 1 : -1)] ?? [];
      if (other) go({ task: t, condition: other.cells[Math.min(row.cells.indexOf(state.condition), other.cells.length - 1)] }, true);
    } else return;
    event.preventDefault();
  };
  find.oninput = () => go({ find: find.value });
  more.onclick = drawRows;
  new IntersectionObserver((seen) => seen[0].isIntersecting && !more.hidden && drawRows()).observe(more);
  go({ missing: state.missing });
  return go;
};

// Where heads look: one token is chosen, and each head shades what this token looks at.
const attend = (root, data, state, changed) => {
  const name = (k) => `${data.tokens[k].replaceAll("\n", "⏎").trim()} (${k})`;
  const say = make("p", { className: "say" });
  const choices = data.tokens.map((token, q) => {
    const button = make("button", { className: "token", type: "button", ariaLabel: name(q) }, token);
    button.onclick = () => go({ query: q }, true);
    button.onmouseenter = () => draw(q);
    return button;
  });
  const chooser = make("div", { className: "tokens", role: "group", ariaLabel: "token that looks" }, ...choices);
  chooser.onmouseleave = () => draw(state.query);
  const heads = data.heads.map((head, h) => {
    const look = (q) => ({ className: "token", onmouseenter: () => draw(q), onclick: () => go({ query: q }) });
    const tokens = data.tokens.map((token, q) => make("span", look(q), token));
    const strip = make("div", { className: "tokens", onmouseleave: () => draw(state.query) }, ...tokens);
    const most = make("small");
    return { weights: data.weights[h], tokens, most, box: make("div", {}, make("b", {}, head), " ", most, strip) };
  });
  root.replaceChildren(say, chooser, make("div", { className: "heads" }, ...heads.map(({ box }) => box)));
  const draw = (query) => {
    say.replaceChildren("Token ", make("b", {}, name(query)), " looks at what is shaded. Point at another token, or choose it.");
    choices.forEach((button, q) => {
      button.setAttribute("aria-pressed", q === query);
      button.tabIndex = q === query ? 0 : -1;
    });
    for (const { weights, tokens, most } of heads) {
      const row = weights.slice((query * (query + 1)) / 2, ((query + 1) * (query + 2)) / 2); // thousandths, up to itself
      const largest = Math.max(...row, 1);
      tokens.forEach((span, k) => {
        span.style.setProperty("--share", `${Math.round((100 * (row[k] ?? 0)) / largest)}%`);
        span.classList.toggle("later", k > query);
        span.title = k > query ? "comes later" : `token ${k}: ${(row[k] / 1000).toFixed(3)}`;
      });
      const order = row.map((_, k) => k).sort((a, b) => row[b] - row[a]).slice(0, 3);
      most.textContent = order.map((k) => `${name(k)} ${(row[k] / 1000).toFixed(2)}`).join(", ");
    }
  };
  const go = (update, focus = false) => {
    Object.assign(state, update);
    draw(state.query);
    if (focus) choices[state.query].focus();
    changed({ ...state });
  };
  chooser.onkeydown = (event) => {
    const next = state.query + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? 0);
    if (next === state.query || !choices[next]) return;
    event.preventDefault();
    go({ query: next }, true);
  };
  go({});
  return go;
};

const start = (root, data, ...others) => (data.tasks ? explore : attend)(root, data, ...others);

export default {
  render: ({ model, el }) => {
    el.classList.add("depthlens-explorer");
    const root = el.appendChild(make("div"));
    let own;
    const go = start(root, model.get("data"), { ...model.get("data").start, ...model.get("state") }, (state) => {
      own = state;
      model.set("state", state);
      model.save_changes();
    });
    model.on("change:state", () => own !== model.get("state") && go(model.get("state")));
  },
};

// On a page the fragment of the address is the state, so that a finding can be sent.
let explorers = 0;
for (const place of document.querySelectorAll(".depthlens-explorer[data-page]")) {
  place.removeAttribute("data-page"); // each view of a page brings this script
  const data = JSON.parse(place.querySelector("script").textContent);
  const root = make("div");
  place.querySelector(".static").replaceWith(root);
  if (!data.tasks) {
    start(root, data, data.start, () => {});
    continue;
  }
  const nth = explorers++;
  const read = () => {
    const given = new URLSearchParams(nth ? "" : location.hash.slice(1)); // the first view has the address
    const named = data.tasks.findIndex((one) => one.name === given.get("task"));
    const at = named < 0 ? data.start.task : named;
    const condition = data.tasks[at].conditions.indexOf(given.get("without"));
    const change = given.get("show") in LABELS ? given.get("show") : data.start.change;
    const missing = condition > 0 ? "" : given.get("without") ?? "";
    return { task: at, condition: condition > 0 ? condition : data.start.condition, change, find: given.get("find") ?? "", missing };
  };
  let own = location.hash;
  const go = explore(root, data, read(), (state) => {
    const words = { task: state.task_name, without: state.name, show: state.change, ...(state.find && { find: state.find }) };
    if (own !== null || nth) own = null;
    else history.replaceState(null, "", `#${new URLSearchParams(words)}`);
  });
  const reach = () => !nth && /(?:^#|&)(?:task|without)=/.test(location.hash) && place.scrollIntoView();
  addEventListener("hashchange", () => {
    go(read());
    reach();
  });
  reach();
}
