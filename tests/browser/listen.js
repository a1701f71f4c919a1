// Runs before the scripts of a page: what its console says is seen.
window.seen = [];
addEventListener("error", e => window.seen.push(e.message));
["error", "warn"].forEach(of => {
  const old = console[of];
  console[of] = (...said) => { window.seen.push(said.join(" ")); old(...said); };
});
