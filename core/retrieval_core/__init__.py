"""What a dataset, a prompt, a bundle and an embedding are.

The core knows nothing of Kubernetes, of an MLflow server or of HTTP. Import what you need from its modules
(`retrieval_core.dataset`, `retrieval_core.bundle`, ...): the package itself imports nothing, so a program that only
needs a dataset does not load torch.
"""
