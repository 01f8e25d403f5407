# docker build --tag gradserve .
# TORCH_INDEX_URL names a package index to look for torch in, beside the usual one. PyTorch's index of CPU builds makes
# the image several gigabytes smaller; without it, x86 Linux gets the CUDA build.
# COMPILER is the Debian package of a C++ compiler, which the compiled engine needs. Without one (--build-arg COMPILER=) the
# image is 400 MB smaller, and training on CPUs goes on without that engine and says so.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/gradserve
WORKDIR /build
# torch first: a layer that stays as it is while the code changes
COPY constraints.txt ./
RUN /opt/gradserve/bin/pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
      --constraint constraints.txt "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN /opt/gradserve/bin/pip install --constraint constraints.txt .

FROM python:${PYTHON}-slim
ARG COMPILER=g++
RUN if [ -n "$COMPILER" ]; then apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$COMPILER" \
 && rm -rf /var/lib/apt/lists/*; fi
RUN useradd --uid 1000 --no-create-home gradserve \
 && install --directory --owner gradserve /srv/models /srv/data
COPY --from=build /opt/gradserve /opt/gradserve
ENV PATH=/opt/gradserve/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRADSERVE_HOST=0.0.0.0 GRADSERVE_PORT=8000
WORKDIR /srv
USER gradserve
VOLUME ["/srv/models", "/srv/data"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["gradserve", "health"]
ENTRYPOINT ["gradserve"]
CMD ["serve"]
