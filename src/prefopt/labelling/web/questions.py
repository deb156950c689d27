"""The addresses of an annotator: the tasks, the next question, the answer, and taking it back."""

from __future__ import annotations

import re
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from prefopt.errors import PrefoptError
from prefopt.labelling.web.answers import answer_of, key_of, lease_of
from prefopt.labelling.web.errors import FieldError, NotFoundError
from prefopt.labelling.web.room import (
    Form,
    as_json,
    page,
    posted,
    room_of,
    see_other,
    status_of,
    wants_json,
)
from prefopt.labelling.web.sessions import Visitor, check_csrf, visitor_of
from prefopt.labelling.web.showing import document, frame, question
from prefopt.labelling.words import Shown, Task

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def tasks(request: Request) -> Response:
    """The tasks of the database, each with how far it is."""
    visitor = visitor_of(request)
    store = room_of(request).store
    found = [(task, store.progress(task.name, visitor.annotator.id)) for task in store.tasks()]
    if wants_json(request):
        rows = [{"task": task.name, "progress": asdict(progress)} for task, progress in found]
        return as_json({"annotator": visitor.annotator.name, "csrf": visitor.csrf, "tasks": rows})
    return page(request, "tasks.html.j2", {"visitor": visitor, "tasks": found})


def next_question(request: Request) -> Response:
    """The question that this annotator has, or is given now."""
    visitor = visitor_of(request)
    task = task_of(request)
    return _shown(
        request, visitor, task, room_of(request).store.next(task.name, visitor.annotator.id)
    )


@posted
def answers(request: Request, form: Form) -> Response:
    """Take an answer: once this has been said, it is on disk."""
    visitor = visitor_of(request)
    check_csrf(visitor, form)
    task = task_of(request)
    try:
        key, lease, answer = key_of(form), lease_of(form), answer_of(form)
    except FieldError as error:
        return _again(request, visitor, task, form, error)
    store = room_of(request).store
    recorded = store.answer(task.name, visitor.annotator.id, lease, key, answer)
    if not wants_json(request):
        return see_other(_address(task))
    following = store.next(task.name, visitor.annotator.id)
    return as_json({**asdict(recorded), "next": document(request, visitor, task, following)})


@posted
def undo(request: Request, form: Form) -> Response:
    """Take back this annotator's last answer, and show its question again."""
    visitor = visitor_of(request)
    check_csrf(visitor, form)
    task = task_of(request)
    key = key_of(form)
    shown = room_of(request).store.undo(task.name, visitor.annotator.id, key)
    if shown is not None and not wants_json(request):
        return _shown(request, visitor, task, shown)  # only here is it known what was said before
    if not wants_json(request):
        return see_other(_address(task))
    return as_json({"undone": shown is not None, "next": document(request, visitor, task, shown)})


def guidelines(request: Request) -> Response:
    """The guidelines by themselves."""
    visitor = visitor_of(request)
    task = task_of(request)
    if wants_json(request):
        return as_json({"task": task.name, "guidelines": task.guidelines})
    return page(request, "guidelines.html.j2", frame(request, visitor, task))


def task_of(request: Request) -> Task:
    """The task of an address.

    Raises:
        NotFoundError, UnknownTaskError: the database has none of that name.
    """
    name = request.path_params["task"]
    if not _NAME.fullmatch(name):  # nor is the database asked
        raise NotFoundError("there is no such task")
    return room_of(request).store.task(name)


def _shown(request: Request, visitor: Visitor, task: Task, shown: Shown | None) -> Response:
    if wants_json(request):
        return as_json(document(request, visitor, task, shown))
    if shown is None:
        return page(request, "done.html.j2", frame(request, visitor, task))
    return page(request, "question.html.j2", question(request, visitor, task, shown))


def _again(
    request: Request, visitor: Visitor, task: Task, form: Form, error: PrefoptError
) -> Response:
    """A person whose answer could not be read has it in front of them still."""
    shown = room_of(request).store.next(task.name, visitor.annotator.id)
    if wants_json(request) or shown is None or str(shown.lease) != form.get("lease"):
        raise error
    filled = question(request, visitor, task, shown, form=form, problem=error)
    return page(request, "question.html.j2", filled, status_of(error))


def _address(task: Task) -> str:
    return f"/tasks/{task.name}"
