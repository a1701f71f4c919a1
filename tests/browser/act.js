// What the steps of views.py do as a reader.
window.KEY = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
window.FIND = text => {
  const box = document.querySelector("input");
  box.value = text;
  box.dispatchEvent(new Event("input"));
};
window.MARK = share => {
  const strip = document.querySelector(".strip"), box = strip.getBoundingClientRect();
  const clientX = box.x + share * box.width, clientY = box.y + 5;
  strip.dispatchEvent(new MouseEvent("click", {clientX, clientY, bubbles: true}));
};
