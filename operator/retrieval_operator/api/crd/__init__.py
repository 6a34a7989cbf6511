"""The CustomResourceDefinition, generated from the types of api/: `python -m retrieval_operator.api.crd`.

schema.py turns pydantic's JSON schema into a structural one, rules.py has the CEL twin of every validator,
document.py puts the definition together.
"""

from retrieval_operator.api.crd.document import CRD_FILE, chart_template, crd, crd_yaml

__all__ = ["CRD_FILE", "chart_template", "crd", "crd_yaml"]
