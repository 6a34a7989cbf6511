"""The Registry port over MLflow's REST API: no MLflow code in the control plane, credentials per connection."""

from retrieval_operator.adapters.mlflow.connection import Connection, Pages
from retrieval_operator.adapters.mlflow.registry import MlflowRegistry

__all__ = ["Connection", "MlflowRegistry", "Pages"]
