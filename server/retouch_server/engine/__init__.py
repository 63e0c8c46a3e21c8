"""Continuous batching over unmodified diffusers pipelines.

Data travels one way: an `Edit` is queued (`engine`), its pipeline runs as a coroutine until the next denoiser call
(`coroutine`), waiting calls that fit are chosen (`batching`), stacked into one forward (`rows`), and resumed.
"""
