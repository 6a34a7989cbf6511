"""What users write and read: the RetrievalModel manifest, its status, conditions and reasons."""
