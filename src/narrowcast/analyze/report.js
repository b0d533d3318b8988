"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  label();
  const value = (cell) => { const text = (cell.dataset.v ?? cell.textContent).trim(), n = Number(text.replace(/ %$/, "")); return text === "" || text === "–" || Number.isNaN(n) ? text.toLowerCase() : n; };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : typeof a === "number" ? 1 : typeof b === "number" ? -1 : a.localeCompare(b);
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const next = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && head.classList.contains("text")) ? "ascending" : "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      rows.map((row, index) => [value(row.cells[column]), index, row]).sort((a, b) => sign * compare(a[0], b[0]) || a[1] - b[1]).forEach((entry) => body.append(entry[2]));
    }));
    const find = table.parentElement.previousElementSibling;
    if (!find || !find.classList.contains("find")) continue;
    const input = find.querySelector("input"), count = find.querySelector(".count");
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) { const text = row.textContent.toLowerCase(); row.hidden = !words.every((word) => text.includes(word)); shown += row.hidden ? 0 : 1; }
      count.textContent = shown + " of " + rows.length;
    };
    input.addEventListener("input", filter);
    filter();
  }
})();
