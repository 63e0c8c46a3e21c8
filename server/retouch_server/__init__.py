"""The gRPC tier: runs diffusion edit models and batches concurrent edits step by step."""
