"""Figures of results: a `Result` goes in, a `Figure` comes out that was neither shown nor saved.

``plot`` of a finding draws its figures (`depthlens.plots.figures` has their names).

Labels, units, chance levels and the number of layers are read from the result. A layer is marked as critical
only where its loss is significant by step-down maxT; a task at chance is drawn in grey and says so.

Made for print and for colour-blind readers (`depthlens.plots.theme`): colours that differ in lightness, too, a marker
of its own for every series, no text below 8 pt at the width of a page.

Figures do not belong to pyplot, so none is left open, and ``%matplotlib`` does not matter: the last
expression of a notebook cell displays its figure exactly once, in Jupyter and under papermill alike. Anywhere
else in a cell write ``display(figure)``.
"""
