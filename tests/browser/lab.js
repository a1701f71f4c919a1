// What the steps of lab.py call in the page. JupyterLab exposes its application as `jupyterapp`.
window.panel = () => [...window.jupyterapp.shell.widgets('main')].find((w) => w.content?.widgets?.length);
window.cells = () => window.panel().content.widgets;
window.kernel = () => window.panel().sessionContext.session?.kernel;
window.shown = (i) => window.cells()[i].model.outputs?.toJSON() ?? [];
window.state = () => ({
  kernel: window.kernel()?.status,
  counts: window.cells().map((c) => c.model.type === 'code' && c.model.sharedModel.source.trim()
    ? (c.model.executionState === 'running' ? null : c.model.executionCount) : -1),
});
window.show = (i) => { const all = window.panel().content; all.activeCellIndex = i; all.scrollToItem(i, 'start'); };
window.run = (i) => { window.show(i); window.jupyterapp.commands.execute('notebook:run-cell'); };
window.add = (source) => {
  const at = window.cells().length;
  window.panel().content.model.sharedModel.insertCell(at, {cell_type: 'code', source});
  return at;
};
