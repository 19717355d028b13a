"""Pictures of the project's data, as SVG or PNG: one module for each subject, with a function `draw`.

`sheet` has what they share: paper, colours, letters and files. matplotlib comes with the extra `plot`, and only
drawing imports it.
"""
