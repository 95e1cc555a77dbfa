// Filters the table of weights by every word that is typed; the page reads without it.
const box = document.getElementById("search");
const count = document.getElementById("count");
const rows = [...document.querySelectorAll("#sites tbody tr")];
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  count.textContent = `${shown} of ${rows.length}`;
});
