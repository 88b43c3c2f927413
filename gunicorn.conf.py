"""Run the HTTP side of a router as a service of its own: ``gunicorn -c gunicorn.conf.py``, beside ``prouter broker``.

The router's configuration comes from the file that PROUTER_CONFIG names and from PROUTER_SECTION__KEY variables. It is
read anew on every reload (HUP).
"""

import runpy

globals().update(runpy.run_module("prouter.web.gunicorn.conf"))
