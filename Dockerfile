# CUDA by default. For a machine without a GPU, give pip the index of PyTorch's CPU wheels:
#   docker build --build-arg TORCH_INDEX_URL=… -t dpo-studio .
# The studio binds the loopback address only, so run it in the host's network:
#   docker run --network host --volume dpo-studio:/storage [--gpus all] dpo-studio
FROM python:3.11-slim

ARG TORCH_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DPO_STUDIO_STORAGE=/storage

RUN useradd --create-home --uid 1000 studio && mkdir -p /srv/studio /storage && chown studio /storage
WORKDIR /srv/studio
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml README.md LICENSE app.py ./
COPY dpo_studio ./dpo_studio
RUN pip install --constraint constraints.txt .

USER studio
VOLUME /storage
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
CMD ["dpo-studio", "serve"]
