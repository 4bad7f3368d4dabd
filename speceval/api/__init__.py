"""What `import speceval` offers (docs/start/python.md): functions of Python values, and the objects they return.

`measuring` starts engines, `reading` judges stored runs, `showing` makes tables, figures and pages, `results` holds the
objects. Nothing here prints.
"""
