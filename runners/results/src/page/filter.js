"use strict";
// All that needs a script: rows by their words, and commands that copy themselves.
const words = document.getElementById("words");
const groups = [...document.querySelectorAll(".group")].map(section => ({
  section,
  rows: [...section.querySelectorAll("tbody tr")].map(row => ({
    row,
    text: (row.id + " " + row.querySelector("summary").textContent).toLowerCase(),
  })),
}));
words.closest("label").hidden = false;

function show() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { section, rows } of groups) {
    let some = false;
    for (const { row, text } of rows) {
      const is = wanted.every(word => text.includes(word));
      row.hidden = !is;
      shown += is;
      some ||= is;
    }
    section.hidden = !some;
  }
  document.getElementById("shown").textContent = wanted.length ? `${shown} rows` : "";
}
words.addEventListener("input", show);
words.form.addEventListener("submit", event => event.preventDefault());

for (const command of document.querySelectorAll(".command")) {
  const text = command.textContent;
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  });
  command.append(button);
}
