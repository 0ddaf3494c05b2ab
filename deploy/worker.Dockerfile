# The core of the package: worker, provision, every command but demo's own servers; no torch. Context: the project's root.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml deploy/requirements.py ./
RUN python requirements.py > requirements.txt
COPY README.md LICENSE ./
COPY stream stream
COPY models models
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11.14-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 FACETSTREAM_MODEL_REPOSITORY=/opt/facetstream/triton_repo
RUN useradd --uid 10001 --create-home facetstream
# The dependencies are a layer of their own, made anew only when their list changes.
COPY --from=build /src/requirements.txt /opt/facetstream/
RUN pip install -r /opt/facetstream/requirements.txt
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
# For provision, which puts the codebook into Redis. Weights are written for their owner alone.
COPY --chmod=755 triton_repo /opt/facetstream/triton_repo
USER facetstream
WORKDIR /home/facetstream
EXPOSE 6066
ENTRYPOINT ["facetstream"]
CMD ["worker"]
