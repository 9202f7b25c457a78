
// The page is whole without this: it adds sorting, opens details for printing, and leaves what does not scroll out of the tab order.
"use strict";
const keyOf = (row, column) => {
  const cell = row.cells[column];
  const key = cell.dataset.key;
  return key ? Number(key) : cell.textContent.trim();
};
const order = (a, b) => {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, document.documentElement.lang, { numeric: true });
  return typeof a === "number" ? -1 : 1;
};
const sort = (table, column) => {
  const head = table.tHead.rows[0].cells;
  const down = head[column].ariaSort === "ascending";
  for (const cell of head) if (cell.tagName === "TH") cell.setAttribute("aria-sort", "none");
  head[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, column), row]);
  rows.sort(([a], [b]) => (down ? order(b, a) : order(a, b)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
};
for (const table of document.querySelectorAll("table.sortable")) {
  if (table.tBodies[0].rows.length < 2) continue;
  for (const [column, cell] of [...table.tHead.rows[0].cells].entries()) {
    if (cell.tagName !== "TH") continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sort(table, column));
    cell.append(button);
    cell.setAttribute("aria-sort", "none");
  }
}
const reach = () => {
  for (const box of document.querySelectorAll(".scroll, .drawings[role], pre")) {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
reach();
addEventListener("resize", reach);
document.addEventListener("toggle", reach, true);
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});
