"""The settings of a server that someone else runs."""

from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from pipeline.config.section import Section


class AttachConfig(Section):
    """A server that someone else runs, to be measured in place of ours, and replicas of it that share `bench`'s load."""

    url: str | None = None
    replicas: tuple[str, ...] = ()
    warm_up: bool = True

    @model_validator(mode="after")
    def replicas_have_a_first(self) -> "AttachConfig":
        urls = (self.url, *self.replicas)
        if self.replicas and self.url is None:
            raise ValueError("replicas: attach.url names the first of them (--attach URL)")
        if len(set(urls)) < len(urls):
            raise ValueError("replicas: the same server twice would count twice")
        return self

    @field_validator("replicas")
    @classmethod
    def are_base_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cls.is_base_url(url) or "" for url in urls)

    @field_validator("url")
    @classmethod
    def is_base_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://host:port or https://host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("expected no user, query or fragment; an API key belongs into the environment variable VLLM_API_KEY")
        return url.rstrip("/").removesuffix("/v1")
