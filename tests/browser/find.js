// What pages.py finds on a page.
(async () => {
  const root = document.documentElement;
  document.querySelectorAll("details").forEach(folded => { folded.open = true; });
  await new Promise(resolve => setTimeout(resolve, 1000));  // scripts of the page make what scrolls focusable
  const found = {inner: innerWidth, wide: root.scrollWidth - root.clientWidth, console: window.seen, axe: []};
  if (window.axe) found.axe = (await axe.run({preload: false})).violations.map(
    v => [v.id, v.impact, v.nodes.length, [...new Set(v.nodes.map(n => n.html.slice(0, 60)))].slice(0, 4).join(" ")]);
  return found;
})()
