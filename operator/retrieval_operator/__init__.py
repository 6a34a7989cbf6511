"""The control plane of Retrieval Operator. It starts the other components and imports none of them."""
