"""The notebooks as tasks of doit: `doit list --all`, `doit notebook:70_theory`, `doit -n 2 -P thread profile=paper`."""

from doit import get_var

from daedalus.pipeline.reproduce import BUILD, DOIT_CONFIG, tasks

BUILD.mkdir(exist_ok=True)
__all__ = ["DOIT_CONFIG", "task_notebook"]


def task_notebook():
    """Run a notebook in which something changed."""
    yield from tasks(get_var("profile", "smoke"))
