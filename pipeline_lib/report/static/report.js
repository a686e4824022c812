"use strict";
// The page's own script: pictures, tabs, tables, downloads, the map of components and its cards.
// Texts from the data reach the page as text nodes only, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = (name) => JSON.parse(byId(`data-${name}`).textContent);
  const images = data("images");
  const tables = data("tables");
  const atlas = data("atlas");

  // Make an element: `el("td", {class: "number"}, "3 %")`; children may be nodes, texts or lists.
  function el(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === false || value === null || value === undefined) continue;
      if (key === "style") made.style.cssText = value;
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return made;
  }

  const narrow = "\u202f";
  const minus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−"));
  function percent(value, digits = 1) {
    return value === null || value === undefined ? "–" : minus((100 * value).toFixed(digits)) + narrow + "%";
  }

  // Colours

  const themes = ["auto", "light", "dark"];
  const themeWords = { auto: "as the system", light: "light", dark: "dark" };
  function stored(value) {
    try {
      if (value === undefined) return localStorage.getItem("vit-atlas-theme");
      localStorage.setItem("vit-atlas-theme", value);
    } catch (error) { /* storage is not allowed for files in some browsers */ }
    return null;
  }
  function setTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = byId("theme");
    button.setAttribute("aria-label", `Colours: ${themeWords[theme]}`);
    button.querySelector("span").textContent = theme[0].toUpperCase() + theme.slice(1);
    button.dataset.now = theme;
  }
  setTheme(themes.includes(stored()) ? stored() : "auto");
  byId("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(byId("theme").dataset.now) + 1) % themes.length];
    setTheme(next);
    stored(next);
  });

  // Pictures

  function fill(img) {
    const found = images[img.dataset.picture];
    if (!found) return;
    img.removeAttribute("width");
    img.removeAttribute("height");
    img.src = found[0];
    img.alt = found[1];
    img.title = found[1];
  }
  document.querySelectorAll("img[data-picture]").forEach((img) => {
    img.loading = "lazy";
    fill(img);
  });
  function picture(key) {
    const img = el("img", { "data-picture": key });
    fill(img);
    return el("figure", { class: "picture" }, img);
  }

  // Tabs

  document.querySelectorAll("[role=tablist]").forEach((list) => {
    const tabs = [...list.querySelectorAll("[role=tab]")];
    function choose(chosen, focus) {
      tabs.forEach((tab) => {
        const on = tab === chosen;
        tab.setAttribute("aria-selected", on);
        tab.tabIndex = on ? 0 : -1;
        byId(tab.getAttribute("aria-controls")).hidden = !on;
      });
      if (focus) chosen.focus();
    }
    list.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) choose(tab, false);
    });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length], true);
    });
    choose(tabs[0], false);
  });

  // Tables: sorting, the rows behind a figure, downloads

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = el("button", { type: "button" }, head.textContent.trim());
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
        const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1));
        body.append(...rows);
      });
    });
  }
  function compare(a, b) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b)) : x - y;
  }
  document.querySelectorAll("table.sortable").forEach(sortable);

  const maxRows = 500;
  function cellText(value) {
    if (value === null) return "–";
    if (typeof value === "number" && !Number.isInteger(value)) return minus(String(Number(value.toPrecision(4))));
    return String(value);
  }
  function showRows(place) {
    const columns = tables[place.dataset.rows];
    const names = Object.keys(columns);
    const count = columns[names[0]].length;
    const numeric = names.map((name) => columns[name].every((v) => v === null || typeof v === "number"));
    const side = (i, value) => ({ class: numeric[i] ? "number" : String(value).length <= 26 && "short" });
    const rows = Array.from({ length: Math.min(count, maxRows) }, (_, row) =>
      el("tr", {}, names.map((name, i) =>
        el("td", { ...side(i, columns[name][row]), "data-sort": columns[name][row] ?? "" }, cellText(columns[name][row])))));
    const table = el("table", {},
      el("thead", {}, el("tr", {}, names.map((name, i) => el("th", { scope: "col", ...side(i) }, name.replaceAll("_", " "))))),
      el("tbody", {}, rows));
    sortable(table);
    place.append(el("div", { class: "scroll", tabindex: 0 }, table));
    if (count > maxRows) place.append(el("p", { class: "hint" }, `The first ${maxRows} of ${count} rows; the CSV has all.`));
  }
  document.querySelectorAll("details[data-rows]").forEach((place) => {
    if (!tables[place.dataset.rows]) { place.remove(); return; }
    place.addEventListener("toggle", () => {
      if (place.open && place.children.length === 1) showRows(place);
    });
  });

  function save(name, text, type) {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = el("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
  function csvOf(columns) {
    const names = Object.keys(columns);
    const quoted = (value) => {
      const text = value === null ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const rows = columns[names[0]].map((_, row) => names.map((name) => quoted(columns[name][row])).join(","));
    return [names.map(quoted).join(","), ...rows].join("\n") + "\n";
  }
  // Panels side by side in one drawing, in the colours the reader sees now.
  function svgOf(block) {
    const panels = [...block.querySelectorAll(".panel svg")];
    const theme = getComputedStyle(document.documentElement);
    const sizes = panels.map((svg) => [Number(svg.getAttribute("width")), Number(svg.getAttribute("height"))]);
    const gap = 16;
    const columns = Math.min(panels.length, sizes[0][0] > 500 ? 1 : sizes[0][0] > 350 ? 2 : 3);
    const width = Math.max(...sizes.map((size) => size[0]));
    const parts = [];
    let top = gap;
    for (let start = 0; start < panels.length; start += columns) {
      const row = panels.slice(start, start + columns);
      row.forEach((svg, place) => {
        const text = new XMLSerializer().serializeToString(svg);
        parts.push(text.replace("<svg ", `<svg x="${gap + place * (width + gap)}" y="${top}" `));
      });
      top += Math.max(...sizes.slice(start, start + columns).map((size) => size[1])) + gap;
    }
    const total = gap + columns * (width + gap);
    const inside = parts.join("").replace(/var\((--\w+)\)/g, (_, name) => theme.getPropertyValue(name).trim());
    const back = theme.getPropertyValue("--surface").trim();
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${total} ${top}" width="${total}" height="${top}">` +
      `<rect width="100%" height="100%" fill="${back}"/>${inside}</svg>\n`;
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-csv], [data-svg], button.component");
    if (!button) return;
    if (button.dataset.csv) save(`${button.dataset.csv}.csv`, csvOf(tables[button.dataset.csv]), "text/csv");
    else if (button.dataset.svg) save(`${button.dataset.svg}.svg`, svgOf(button.closest(".block")), "image/svg+xml");
    else openCard(button.dataset.model, button.dataset.component);
  });

  // Navigation: mark the section in view

  const links = new Map([...document.querySelectorAll(".top nav a")].map((a) => [a.hash.slice(1), a]));
  const targets = [...links.keys()].map(byId);
  function markSection() {
    const line = window.innerHeight * 0.3;
    const passed = targets.filter((section) => section.getBoundingClientRect().top <= line);
    const now = passed.length ? passed[passed.length - 1].id : "overview";
    links.forEach((link, id) => {
      if (id === now && !link.hasAttribute("aria-current")) {
        const nav = link.closest("nav");
        nav.scrollLeft += link.getBoundingClientRect().left - nav.getBoundingClientRect().left - 24;
      }
      if (id === now) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
  }
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; markSection(); });
  }, { passive: true });
  markSection();

  // The map of components

  const models = atlas ? atlas.models : [];
  const parts = models.flatMap((model) => model.components.map((part) => ({ ...part, model: model.name })));
  const partOf = new Map(parts.map((part) => [`${part.model}\n${part.id}`, part]));
  const shortName = (id) => id.replace(/^(?:(?:visual|trunk|transformer|model)\.)+/, "");
  const kindWords = { mlp: "MLP", conv: "convolution" };
  const kindWord = (kind) => kindWords[kind] ?? kind;
  const cells = new Map();
  const dialog = byId("card");
  const tip = byId("tip");
  let shownPart = null;

  function measureNow() {
    return atlas.measures.find((measure) => measure.key === byId("atlas-measure").value);
  }
  function valueOf(part, key) {
    const values = part.values[key];
    return values ? values[0] : null;
  }
  function valueText(part, measure) {
    const values = part.values[measure.key];
    if (!values) return "not measured";
    const interval = Number.isFinite(values[1]) ? ` (${percent(values[1])} to ${percent(values[2])})` : "";
    return percent(values[0]) + interval;
  }
  const [noRole, oneCategory] = ["no clear role", "texts of one category"];
  function roleText(role) {
    if (!role) return "no texts";
    return [noRole, oneCategory].includes(role.name) ? role.name : `${role.name}, ${percent(role.share, 0)} of what its texts explain`;
  }
  function roleWhy(role) {
    if (!role) return null;
    if (role.name === oneCategory) return "A role is told from texts of several categories; the pool has one.";
    const lead = role.name === noRole ? `Its first category has ${percent(role.share, 0)} of what its texts explain, ` : `${role.texts} of its ${role.of} texts, `;
    return `${lead}${minus((100 * role.margin).toFixed(0))} points ahead of the next; q = ${role.q_value.toFixed(3)} (of roles with such a q, that share is chance at most, on average).`;
  }

  function drawMap(model) {
    const own = parts.filter((part) => part.model === model.name);
    const left = (part) => (/^\d+$/.test(part.slot) ? Number(part.slot) : ["attention", "stem", "bias"].includes(part.slot) ? 0 : null);
    const heads = 1 + Math.max(0, ...own.map((part) => left(part) ?? 0));
    const beside = ["conv", "mlp"].filter((kind) => own.some((part) => part.slot === kind));
    const rest = [...new Set(own.filter((part) => left(part) === null).map((part) => part.slot))];
    const columns = [...beside, ...rest.filter((slot) => !beside.includes(slot))];
    const rowCount = 1 + Math.max(...own.map((part) => part.row));
    let lastBlock = null;
    let lastStage = null;
    const body = Array.from({ length: rowCount }, (_, row) => {
      const here = own.filter((part) => part.row === row);
      const alone = here.find((part) => ["stem", "bias"].includes(part.kind));
      const block = here[0].block;
      const label = alone ? alone.kind : block === lastBlock ? "" : String(block);
      const newStage = lastStage !== null && here[0].stage !== lastStage && !alone;
      if (!alone) lastStage = here[0].stage;
      lastBlock = alone ? null : block;
      const at = (test) => { const part = here.find(test); return el("td", {}, part ? cell(part) : null); };
      return el("tr", { class: newStage ? "new-stage" : false },
        el("th", { scope: "row" }, label),
        Array.from({ length: heads }, (_, head) => at((part) => left(part) === head)),
        columns.length ? el("td", { class: "gap" }) : null,
        columns.map((slot) => at((part) => part.slot === slot)));
    });
    const top = el("tr", {}, el("th"), el("th", { colspan: heads, scope: "colgroup" }, heads > 2 ? "heads" : "head"),
      columns.length ? el("th", { class: "gap" }) : null,
      columns.map((slot) => el("th", { scope: "col" }, slot)));
    const table = el("table", { class: "map-grid", role: "grid", "aria-label": `Components of ${model.name}` },
      el("thead", {}, top), el("tbody", {}, body));
    const first = table.querySelector(".cell");
    if (first) first.tabIndex = 0;
    return el("div", { class: "model-map", "data-model": model.name }, el("h5", {}, model.name), el("div", { class: "scroll" }, table));
  }
  function cell(part) {
    const button = el("button", { type: "button", class: "cell", tabindex: -1, "data-id": part.id });
    cells.set(part, button);
    button.addEventListener("click", () => openCard(part.model, part.id));
    button.addEventListener("mouseenter", () => showTip(part, button));
    button.addEventListener("focus", () => { if (button.matches(":focus-visible")) showTip(part, button); });
    button.addEventListener("mouseleave", hideTip);
    button.addEventListener("blur", hideTip);
    return button;
  }
  function moveInMap(event) {
    const steps = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const step = steps[event.key];
    const from = event.target.closest(".cell");
    if (!step || !from) return;
    event.preventDefault();
    const here = from.getBoundingClientRect();
    const [x, y] = [here.left + here.width / 2, here.top + here.height / 2];
    let best = null;
    for (const other of from.closest("table").querySelectorAll(".cell")) {
      const box = other.getBoundingClientRect();
      const [dx, dy] = [box.left + box.width / 2 - x, box.top + box.height / 2 - y];
      const along = dx * step[0] + dy * step[1];
      if (other === from || along < 3) continue;
      const cost = along + 4 * Math.abs(dx * step[1] + dy * step[0]);
      if (!best || cost < best.cost) best = { other, cost };
    }
    if (!best) return;
    from.tabIndex = -1;
    best.other.tabIndex = 0;
    best.other.focus();
  }

  function showTip(part, button) {
    const measure = measureNow();
    tip.replaceChildren(el("b", {}, shortName(part.id)), el("p", {}, `${measure.name}: ${valueText(part, measure)}`),
      part.role ? el("p", {}, roleText(part.role)) : "",
      part.texts.length ? el("p", {}, part.texts.slice(0, 3).map((text) => text[0]).join(" · ")) : "");
    tip.hidden = false;
    const box = button.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const beside = box.right + own.width + 18 < innerWidth;
    const above = box.top - own.height - 8;
    const left = beside ? box.right + 10 : Math.max(8, Math.min(box.left, innerWidth - own.width - 8));
    const top = beside ? Math.max(8, Math.min(box.top, innerHeight - own.height - 8)) : above > 8 ? above : box.bottom + 8;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  }
  function hideTip() { tip.hidden = true; }

  function paint() {
    const measure = measureNow();
    const values = parts.map((part) => valueOf(part, measure.key)).filter((value) => value !== null);
    const most = Math.max(1e-9, ...values.map(Math.abs));
    cells.forEach((button, part) => {
      const value = valueOf(part, measure.key);
      button.classList.toggle("none", value === null);
      button.classList.toggle("minus", value !== null && value < 0);
      button.style.setProperty("--v", value === null ? 0 : Math.sqrt(Math.abs(value) / most).toFixed(3));
      button.setAttribute("aria-label", `${part.id}: ${valueText(part, measure)}`);
    });
    showLegend(measure, Math.max(0, ...values.map((value) => -value)), Math.max(0, ...values), most);
  }

  // A bar on the square-root scale of the cells, from the lowest value to the highest.
  function showLegend(measure, lowest, highest, most) {
    const [start, end] = [-Math.sqrt(lowest / most), Math.sqrt(highest / most)];
    const place = (root) => (100 * (root - start)) / Math.max(end - start, 1e-9);
    const mix = (root) => `color-mix(in oklab, var(--${root < 0 ? "c2" : "accent"}) ${Math.abs(root) * 100}%, var(--cell)) ${place(root).toFixed(1)}%`;
    const roots = [...new Set([start, 0, end / 2, end])].sort((a, b) => a - b);
    const value = (root) => Math.sign(root) * root * root * most;
    const labelled = roots.filter((root) => root >= 0 || place(0) > 14);
    byId("atlas-legend").replaceChildren(el("div", { class: "ramp" },
      el("div", { class: "bar", style: `background: linear-gradient(to right, ${roots.map(mix).join(", ")})` }),
      el("div", { class: "ticks" }, labelled.map((root) =>
        el("span", { style: `left: ${place(root)}%` }, percent(value(root), most < 0.1 ? 1 : 0))))),
      el("span", {}, measure.label + (lowest > most / 50 ? "; orange: below zero" : "")));
  }

  // A word asked for matches the beginning of a word: "red" finds "red" and "reddish", not "checkered".
  function wordsNow() {
    const asked = byId("atlas-search").value.split(/\s+/).filter(Boolean);
    return asked.map((word) => new RegExp(`(?<![\\p{L}\\p{N}])${word.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&")}`, "iu"));
  }
  function hits(part, words) {
    return part.texts.filter((text) => words.every((word) => word.test(text[0]) || word.test(text[1])));
  }
  function marked(text, words) {
    const pieces = [];
    let rest = text;
    while (rest) {
      const found = words.map((word) => word.exec(rest)).filter(Boolean).sort((a, b) => a.index - b.index)[0];
      if (!found) { pieces.push(rest); break; }
      pieces.push(rest.slice(0, found.index), el("mark", {}, found[0]));
      rest = rest.slice(found.index + found[0].length);
    }
    return pieces;
  }
  function filter() {
    const [model, kind, role] = ["atlas-model", "atlas-kind", "atlas-role"].map((id) => byId(id).value);
    const words = wordsNow();
    const asked = Boolean(words.length || kind || role);
    const measure = measureNow();
    const found = [];
    for (const part of parts) {
      const texts = words.length ? hits(part, words) : part.texts;
      const kept = (!model || part.model === model) && (!kind || part.kind === kind) &&
        (!role || (part.role && part.role.name === role)) && (!words.length || texts.length > 0);
      cells.get(part).classList.toggle("off", !kept);
      if (kept) found.push({ part, texts });
    }
    document.querySelectorAll(".model-map").forEach((map) => { map.hidden = Boolean(model) && map.dataset.model !== model; });
    byId("atlas-maps").classList.toggle("one", Boolean(model) || models.length === 1);
    const order = words.length && found.length > 1 ? ", first those whose text explains most of them" : "";
    byId("atlas-count").textContent = asked ? `${found.length} of ${parts.length} components${order}` : `${found.length} components`;
    const share = (entry) => (words.length ? Math.max(...entry.texts.map((text) => text[2])) : valueOf(entry.part, measure.key) ?? -1);
    found.sort((a, b) => share(b) - share(a));
    showResults(asked ? found.slice(0, 40) : [], words, found.length);
  }
  function showResults(found, words, count) {
    const place = byId("atlas-results");
    place.hidden = !found.length;
    if (!found.length) { place.replaceChildren(); return; }
    const measure = measureNow();
    const heads = ["component", "model", "role", "texts"].map((name) => el("th", { scope: "col" }, name));
    heads.push(el("th", { scope: "col", class: "number" }, measure.name));
    const rows = found.map(({ part, texts }) => el("tr", {},
      el("td", {}, componentButton(part.model, part.id)), el("td", { class: "short" }, part.model),
      el("td", { class: "short" }, part.role ? part.role.name : "–"),
      el("td", {}, texts.slice(0, 4).flatMap((text, i) => [i ? " · " : "", ...marked(text[0], words)])),
      el("td", { class: "number" }, valueText(part, measure))));
    place.replaceChildren(el("div", { class: "scroll" }, el("table", { class: "many" }, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows))),
      count > found.length ? el("p", { class: "hint" }, `The first ${found.length} of ${count}.`) : "");
  }
  function componentButton(model, id) {
    const pieces = shortName(id).split(/(?<=[./])/).map((piece) => [el("wbr"), piece]);
    return el("button", { type: "button", class: "component", "data-model": model, "data-component": id }, pieces);
  }

  // Cards

  function openCard(model, id) {
    const part = partOf.get(`${model}\n${id}`);
    if (!part) return;
    hideTip();
    shownPart = part;
    dialog.replaceChildren(cardOf(part));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    history.replaceState(null, "", `#component=${encodeURIComponent(model)}/${encodeURIComponent(id)}`);
  }
  function cardOf(part) {
    const step = (by, label, sign) => {
      const own = parts.filter((other) => other.model === part.model);
      const next = own[own.indexOf(part) + by];
      const button = el("button", { type: "button", class: "quiet", "aria-label": label, disabled: !next }, sign);
      if (next) button.addEventListener("click", () => openCard(next.model, next.id));
      return button;
    };
    const close = el("button", { type: "button", class: "quiet", "aria-label": "Close", autofocus: true }, "Close ✕");
    close.addEventListener("click", () => dialog.close());
    const where = [kindWord(part.kind), part.stage >= 0 && `stage ${part.stage}`, part.block >= 0 && `block ${part.block}`,
      part.head >= 0 && `head ${part.head}`, `layer ${part.layer}`].filter(Boolean).join(" · ");
    return el("div", { class: "card" },
      el("div", { class: "card-bar" }, step(-1, "Previous component", "←"), step(1, "Next component", "→"), close),
      el("h3", { id: "card-title" }, part.id), el("p", { class: "where" }, `${part.model} · ${where}`),
      el("p", { class: "role" }, "Role: ", el("b", {}, roleText(part.role))),
      el("p", { class: "small" }, roleWhy(part.role)),
      imagesOf(part), mapsOf(part), textsOf(part), measuresOf(part), neighboursOf(part));
  }
  function measuresOf(part) {
    const present = atlas.measures.filter((measure) => part.values[measure.key]);
    if (!present.length) return null;
    const groups = [["strength", "Direct effect", "Share of the variance of the model's own representation, with its 95\u202f% interval over images."],
      ["score:", "Share of each feature", "Share of the feature's variance, with its 95\u202f% interval over images. Pale: not above random directions (q > 0.05)."],
      ["drop:", "Accuracy lost without it", "When this component alone is replaced by its mean."]];
    return el("div", {}, groups.map(([key, title, words]) => {
      const own = present.filter((measure) => measure.key.startsWith(key));
      if (!own.length) return null;
      const most = Math.max(...parts.filter((other) => other.model === part.model)
        .flatMap((other) => own.map((measure) => Math.abs(valueOf(other, measure.key) ?? 0))), 1e-9);
      return [el("h4", {}, title), el("div", { class: "bars" }, own.map((measure) => {
        const value = valueOf(part, measure.key);
        const name = measure.key.includes(":") ? measure.key.slice(measure.key.indexOf(":") + 1) : "all";
        const [, , , chance] = part.values[measure.key];
        const faint = chance > 0.05 ? " faint" : "";
        return [el("span", {}, name), el("span", { class: "track" },
          el("span", { class: (value < 0 ? "fill minus" : "fill") + faint, style: `--v: ${Math.abs(value) / most}` })),
          el("span", { class: "value" }, valueText(part, measure))];
      })), el("p", { class: "small" }, `${words} Bars are relative to the largest in this model.`)];
    }));
  }
  function textsOf(part) {
    if (!part.texts.length) return null;
    const rows = part.texts.map((text) => el("tr", {}, el("td", {}, text[0]), el("td", {}, text[1]),
      text.slice(2).map((share) => el("td", { class: "number" }, percent(share)))));
    const heads = ["text", "category", "adds", "together", "words", "vectors", "bound"].map((name, i) =>
      el("th", { scope: "col", class: i > 1 ? "number" : false }, name));
    return el("div", {}, el("h4", {}, "Texts"),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows))),
      el("p", { class: "small" }, "Share of this component's variance that each text adds, and that the texts so far explain together, beside as many texts of random words of the pool (words), random vectors, and principal components (the bound)."));
  }
  function imagesOf(part) {
    if (!part.images.length) return null;
    return el("div", {}, el("h4", {}, "Top images"), el("div", { class: "pictures" }, part.images.map(picture)),
      el("p", { class: "small" }, `Where it writes most along its first text, “${part.texts[0][0]}”, of all images.`));
  }
  function mapsOf(part) {
    const title = el("h4", {}, "Token maps");
    if (!part.maps.length) {
      return part.texts.length ? el("div", {}, title, el("p", { class: "small" },
        "None: it takes nothing from single patches, as the representation is read elsewhere.")) : null;
    }
    return el("div", {}, title, tokenMaps(part),
      el("p", { class: "small" }, "Which patches of its first top images that comes from: ",
        el("span", { class: "warm" }, "red"), " towards the text, ", el("span", { class: "cold" }, "blue"),
        " against it. What it takes from the class token or from constants has no place."));
  }

  // Token maps: the part of the picture that the model sees, in grey, and the map over it.

  const [warm, cold] = [[178, 24, 43], [33, 102, 172]];
  function tokenMaps(part) {
    return el("div", { class: "token-maps" }, part.maps.map((map) => {
      const words = images[map.image][1];
      const canvas = el("canvas", { width: 224, height: 224, role: "img", title: words,
        "aria-label": `Token map of ${part.id} on: ${words}` });
      const picture = new Image();
      picture.onload = () => drawTokenMap(canvas, picture, map);
      picture.src = images[map.image][0];
      return canvas;
    }));
  }
  function drawTokenMap(canvas, picture, map) {
    const context = canvas.getContext("2d");
    const [width, height] = [picture.naturalWidth, picture.naturalHeight];
    const [left, top, right, bottom] = map.crop;
    context.filter = "grayscale(1) contrast(.7) brightness(1.15)";
    context.drawImage(picture, left * width, top * height, (right - left) * width, (bottom - top) * height,
      0, 0, canvas.width, canvas.height);
    context.filter = "none";
    const grid = el("canvas", { width: map.columns, height: map.rows });
    const pixels = new ImageData(map.columns, map.rows);
    const steps = Int8Array.from(atob(map.map), (letter) => letter.charCodeAt(0));
    steps.forEach((step, place) => {
      const strength = Math.abs(step) / 127;
      pixels.data.set([...(step < 0 ? cold : warm), 255 * Math.min(0.82, 1.1 * strength)], 4 * place);
    });
    grid.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(grid, 0, 0, canvas.width, canvas.height);
  }
  function neighboursOf(part) {
    if (!part.near.length) return null;
    const rows = part.near.map(([model, id, similarity]) => el("tr", {}, el("td", {}, model),
      el("td", {}, componentButton(model, id)), el("td", { class: "number" }, minus(similarity.toFixed(2)))));
    return el("div", {}, el("h4", {}, "Most similar component of each model"),
      el("table", {}, el("tbody", {}, rows)),
      el("p", { class: "small" }, "How alike their mapped contributions to the same images are: linear CKA, 1 for the same geometry, about 0 by chance."));
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    history.replaceState(null, "", location.pathname + location.search);
    const button = shownPart && cells.get(shownPart);
    if (button && button.offsetParent) button.focus({ preventScroll: true });
  });
  dialog.addEventListener("keydown", (event) => {
    const label = { ArrowLeft: "Previous component", ArrowRight: "Next component" }[event.key];
    const button = label && dialog.querySelector(`[aria-label="${label}"]`);
    if (button && !button.disabled) { event.preventDefault(); button.click(); }
  });

  function options(select, entries) {
    select.append(...entries.map(([value, words]) => el("option", { value }, words)));
  }
  function startAtlas() {
    options(byId("atlas-measure"), atlas.measures.map((measure) => [measure.key, measure.name]));
    options(byId("atlas-model"), models.map((model) => [model.name, model.name]));
    const kinds = [...new Set(parts.map((part) => part.kind))];
    options(byId("atlas-kind"), kinds.map((kind) => [kind, kindWord(kind)]));
    options(byId("atlas-role"), atlas.roles.map((role) => [role, role]));
    byId("atlas-maps").append(...models.map(drawMap));
    byId("atlas-maps").addEventListener("keydown", moveInMap);
    const controls = byId("atlas-controls");
    const refresh = () => { paint(); filter(); };
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.addEventListener("input", refresh);
    controls.addEventListener("change", refresh);
    controls.addEventListener("reset", () => setTimeout(refresh));
    refresh();
    const asked = location.hash.match(/^#component=([^/]+)\/(.+)$/);
    if (asked) openCard(decodeURIComponent(asked[1]), decodeURIComponent(asked[2]));
  }
  if (atlas && byId("atlas-controls")) startAtlas();
  document.querySelectorAll(".exhibit .token-maps").forEach((place) => {
    const part = partOf.get(`${place.dataset.model}\n${place.dataset.component}`);
    if (part) place.replaceWith(tokenMaps(part));
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, dialog");
    if (event.key !== "/" || typing || !byId("atlas-search")) return;
    event.preventDefault();
    byId("atlas-search").focus();
  });
})();
