# Triton with what the Python backend's models import. Build context: the project's root.
FROM python:3.11.14-slim-bookworm AS requirements
COPY pyproject.toml deploy/requirements.py ./
RUN python requirements.py models > requirements.txt

FROM nvcr.io/nvidia/tritonserver:25.12-py3
# The image's own Python serves the models, so packages go into it; it is nobody else's.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
# Gigabytes of torch: this layer is rebuilt only when the list itself changes, not with the code or the rest of pyproject.
COPY --from=requirements requirements.txt /opt/facetstream/
RUN python3 -m pip install -r /opt/facetstream/requirements.txt
# The process that runs a model pays no heed to PYTHONPATH.
RUN echo /opt/facetstream > "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/facetstream.pth"
COPY models /opt/facetstream/models
# Weights are written for their owner alone; the server is another user.
COPY --chmod=755 triton_repo /models
USER triton-server
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit", \
     "--load-model=item_encoder", "--load-model=user_interests", \
     "--disable-auto-complete-config", "--exit-timeout-secs=5"]
