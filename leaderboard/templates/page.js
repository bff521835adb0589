"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const told = one("#told");
  document.documentElement.classList.add("live");

  // Sorting: unknown values stay last, whichever way.
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? (a < b ? -1 : a > b ? 1 : 0) : x - y;
  };
  const orderOf = (row, column) =>
    column === 0 ? row.cells[0].textContent.trim() : row.cells[column].dataset.order;
  for (const table of all("table.board")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [orderOf(row, column), row]);
        const known = rows.filter(([order]) => order !== undefined);
        known.sort((a, b) => (down ? compare(b[0], a[0]) : compare(a[0], b[0])));
        const unknown = rows.filter(([order]) => order === undefined);
        body.append(...[...known, ...unknown].map(([, row]) => row));
        told.textContent = `Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}.`;
      });
    });
  }

  // Highlighting: a variant in all tables and figures, while pointed at or until let go.
  const marked = new Map();
  for (const element of all("[data-row]")) {
    const name = element.dataset.row;
    marked.set(name, [...(marked.get(name) ?? []), element]);
  }
  const held = new Set();
  let hovered = null;
  const paint = () => {
    const hot = new Set(held);
    if (hovered !== null) hot.add(hovered);
    for (const [name, elements] of marked)
      elements.forEach((element) => element.classList.toggle("hot", hot.has(name)));
    document.body.classList.toggle("picked", hot.size > 0);
    all("tbody th button").forEach((button) =>
      button.setAttribute("aria-pressed", String(held.has(button.dataset.name))));
  };
  const toggle = (name) => {
    if (!held.delete(name)) held.add(name);
    told.textContent = held.size ? `Highlighted: ${[...held].join(", ")}.` : "No variant is highlighted.";
    paint();
  };
  for (const head of all("table.board tbody th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.name = head.parentElement.dataset.row;
    button.append(...head.childNodes);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => toggle(button.dataset.name));
    head.append(button);
  }
  const figures = ".series[data-row]";
  document.addEventListener("click", (event) => {
    const series = event.target.closest?.(figures);
    if (series) toggle(series.dataset.row);
  });
  document.addEventListener("pointerover", (event) => {
    const over = event.target.closest?.(`${figures}, table.board tbody tr`)?.dataset.row ?? null;
    if (over === hovered) return;
    hovered = over;
    paint();
  });

  // Filtering by words of a variant's name.
  const filter = one("#filter");
  const sift = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of all("table.board tbody tr")) {
      const name = row.dataset.row.toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
      shown += !row.hidden;
    }
    told.textContent = words.length ? `${shown} rows shown.` : "All rows shown.";
  };
  filter.addEventListener("input", sift);
  one("#clear").addEventListener("click", () => {
    filter.value = "";
    held.clear();
    paint();
    sift();
  });

  // The difference of two configurations, key by key.
  const keys = (text) => {
    const found = new Map();
    const path = [];
    for (const line of text.split("\n")) {
      const match = /^( *)([^\s:-][^:]*):(.*)$/.exec(line);
      if (!match) {
        const last = [...found.keys()].pop();
        if (last !== undefined && line.trim()) found.set(last, `${found.get(last)} ${line.trim()}`.trim());
        continue;
      }
      path.length = match[1].length / 2;
      path.push(match[2]);
      found.set(path.join("."), match[3].trim());
    }
    return found;
  };
  const configs = all("pre.config");
  const selects = ["#one", "#other"].map(one);
  const show = () => {
    const [mine, theirs] = selects.map((select) => keys(configs[select.selectedIndex]?.textContent ?? ""));
    const names = [...new Set([...mine.keys(), ...theirs.keys()])];
    const rows = names.filter((name) => mine.get(name) !== theirs.get(name)).map((name) => {
      const row = document.createElement("tr");
      [name, mine.get(name) ?? "-", theirs.get(name) ?? "-"].forEach((text, i) => {
        const cell = document.createElement(i ? "td" : "th");
        if (!i) cell.scope = "row";
        cell.textContent = text;
        row.append(cell);
      });
      return row;
    });
    one("#differences tbody").replaceChildren(...rows);
  };
  selects.forEach((select, i) => {
    select.append(...configs.map((config) => new Option(config.dataset.name)));
    select.selectedIndex = Math.min(i, configs.length - 1);
    select.addEventListener("change", show);
  });
  show();
})();
