"""What the web app refuses, each with its HTTP status and with what to do about it."""

from __future__ import annotations

from typing import ClassVar

from prefopt.errors import PrefoptError


class RefusedError(PrefoptError):
    """A request that is not answered as asked.

    Attributes:
        status: of the HTTP answer.
        heading: of the page that a person sees.
        retry_after: seconds until the same request may succeed, if waiting is the remedy.
    """

    status: ClassVar[int] = 400
    heading: ClassVar[str] = "This request cannot be answered"
    retry_after: ClassVar[int | None] = None


class UnknownHostError(RefusedError):
    """The Host header names a machine that this server is not."""

    status = 400
    heading = "This address is not served"


class NotSignedInError(RefusedError):
    """There is no session, or it ended."""

    status = 401
    heading = "You are not signed in"

    def __init__(self) -> None:
        super().__init__(
            "there is no session, or it has ended",
            remedy="open the link that you were given; if it was used already, ask whoever runs "
            "this room for a new one (prefopt label add-annotator)",
        )


class LinkError(RefusedError):
    """A one-time link that is used, expired, revoked or unknown."""

    status = 403
    heading = "This link cannot be used"

    def __init__(self) -> None:
        super().__init__(
            "the link was used already, has expired, or was revoked",
            remedy="ask whoever runs this room for a new one (prefopt label add-annotator)",
        )


class ForgedError(RefusedError):
    """A form that was not filled in on a page of this session."""

    status = 403
    heading = "This form is out of date"

    def __init__(self, message: str = "the form does not belong to this session") -> None:
        super().__init__(
            message, field="csrf", remedy="open the page again and send your answer from there"
        )


class LeadsOnlyError(RefusedError):
    """A page that only leads of the team may see."""

    status = 403
    heading = "This page is for leads"

    def __init__(self) -> None:
        super().__init__(
            "what the team sees is shown to leads only",
            remedy="ask whoever runs this room to add you as a lead",
        )


class NotFoundError(RefusedError):
    """There is nothing at this address."""

    status = 404
    heading = "There is nothing here"

    def __init__(self, message: str = "there is nothing at this address") -> None:
        super().__init__(message, remedy="go back to the list of tasks")


class MethodError(RefusedError):
    """The address exists and is asked for in another way."""

    status = 405
    heading = "This address is used differently"

    def __init__(self) -> None:
        super().__init__(
            "the address does not take requests of this method",
            remedy="go back to the list of tasks",
        )


class TooSlowError(RefusedError):
    """A request whose body does not come."""

    status = 408
    heading = "This took too long"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the form did not arrive within {seconds:g} seconds",
            remedy="send it again: the same answer never counts twice",
        )


class TooLargeError(RefusedError):
    """A request longer than any form of this app."""

    status = 413
    heading = "This is too long"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"a request may have at most {limit:,} bytes", remedy="shorten the comment"
        )


class MediaTypeError(RefusedError):
    """A body that is not a form."""

    status = 415
    heading = "This is not a form"

    def __init__(self, found: str) -> None:
        super().__init__(
            "the body must be a form",
            field="content-type",
            value=found,
            remedy="send application/x-www-form-urlencoded",
        )


class FieldError(RefusedError):
    """A field of a form that says something that cannot be."""

    status = 422
    heading = "Something in the form is not right"


class TooManyError(RefusedError):
    """Too many attempts to sign in from one address."""

    status = 429
    heading = "Too many attempts"
    retry_after = 60

    def __init__(self) -> None:
        super().__init__(
            "there were too many attempts to sign in from your address",
            remedy="wait a minute, then open your own link",
        )


class BrokenError(RefusedError):
    """A mistake of ours."""

    status = 500
    heading = "Something went wrong here"

    def __init__(self) -> None:
        super().__init__(
            "the server met an error that nobody foresaw; its log has the details",
            remedy="go back and try again; if it happens again, tell whoever runs this room",
        )
