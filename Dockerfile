# What a fresh machine needs for the README's two commands, and then the commands themselves. docs/containers.md
#
#   docker build --tag fabricant .                    # make quickstart: the image has run the whole chain once
#   docker build --target tested --tag fabricant .    # make test, too
#
# PyTorch brings its own CUDA libraries; of the host it needs the driver alone. A package registry of one's own is handed
# over for the build, and stays out of the image: --secret id=pip,src=$HOME/.config/pip/pip.conf

FROM debian:bookworm-20250520-slim AS fabricant
ENV LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1
# the compiler is for llama.cpp and for --compile
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /fabricant
COPY . .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf make quickstart
RUN --mount=type=secret,id=pip,target=/etc/pip.conf .venv/bin/python utils/install_llama_cpp.py
# results lie on the host: both are mounted (compose.yaml), for whatever user the container runs as
RUN rm -rf out && mkdir -p --mode=1777 out checkpoints
ENV PATH=/fabricant/.venv/bin:$PATH

FROM fabricant AS tested
RUN --mount=type=secret,id=pip,target=/etc/pip.conf make test

FROM fabricant
