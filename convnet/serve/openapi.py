"""The API in OpenAPI's words; a test holds it against the routes and what they answer."""

from convnet import __version__
from convnet.io.strict_json import Json

NUMBER, TEXT = {"type": "integer", "minimum": 0}, {"type": "string"}
PICTURE: Json = {"name": "picture", "in": "path", "required": True, "schema": TEXT, "description": "Its `id`."}
LABEL: Json = {"name": "label", "in": "query", "schema": NUMBER, "description": "A class [the most probable]."}
STAGE: Json = {"name": "stage", "in": "query", "required": True, "schema": TEXT, "description": "A stage, by name."}
TOP: Json = {"name": "top", "in": "query", "schema": NUMBER, "description": "How many classes [5]."}
BYTES: Json = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def description() -> Json:
    """The OpenAPI document."""
    one = "/api/pictures/{picture}"
    place = [{"name": name, "in": "query", "schema": NUMBER} for name in ("map", "row", "column")]
    stage: Json = {"name": "stage", "in": "path", "required": True, "schema": TEXT}
    job: Json = {"name": "job", "in": "path", "required": True, "schema": TEXT}
    named: Json = {"name": "run", "in": "path", "required": True, "schema": TEXT}
    run = {"run": TEXT}
    pictures = {"pictures": {"type": "array", "items": {"type": "string", "format": "byte"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "convnet serve",
            "version": __version__,
            "description": "What a trained net says of pictures, and how runs go. A picture that was sent is known by "
            "its `id` for a while; then the answer is 404, and it is sent again. 503: ask again in a moment.",
        },
        "paths": {
            "/api": {"get": _operation("This description.")},
            "/api/net": {
                "get": _operation("The net: its name (null: none yet), classes and stages."),
                "post": _operation("Ask another run's net from now on.", body=_object(run)),
            },
            "/api/pictures": {"post": _operation("The most probable classes of a picture: a JPEG, PNG, GIF, TIFF, "
                                                 "WebP, BMP or PPM is the body.", [TOP], body=BYTES)},
            "/api/batch": {"post": _operation("The same of up to 64 pictures.", [TOP], body=_object(pictures))},
            f"{one}/picture.png": {"get": _operation("What the net sees of it.", [PICTURE], png=True)},
            f"{one}/cam": {"get": _operation("Which places speak for a class: CAM or Grad-CAM.", [PICTURE, LABEL])},
            f"{one}/occlusion": {"post": _operation("What a grey square costs a class, place by place: a job.",
                                                    [PICTURE, LABEL], status="202")},
            f"{one}/units": {"get": _operation("A stage's strongest units and their deconvnet.", [PICTURE, STAGE])},
            f"{one}/neighbours": {"get": _operation("The nearest pictures of the index.", [PICTURE])},
            f"{one}/stages": {"get": _operation("What each stage makes of it: shapes and ranges.", [PICTURE])},
            f"{one}/stages/{{stage}}.png": {"get": _operation("A stage's maps side by side, ceil(sqrt(C)) in a row.",
                                                              [PICTURE, stage], png=True)},
            f"{one}/unit": {"get": _operation("How a unit gets its value, number by number.",
                                              [PICTURE, STAGE, *place])},
            "/api/jobs/{job}": {
                "get": _operation("How far a job is; in the end its result.", [job]),
                "delete": _operation("It isn't needed any more.", [job]),
            },
            "/api/runs": {"get": _operation("The runs: state, curves, time left.")},
            "/api/runs/{run}/confused": {"post": _operation("The classes that a run's best net so far confuses, with "
                                                            "its validation pictures: a job.", [named], status="202")},
        },
    }  # fmt: skip


def _operation(
    summary: str, parameters: list[Json] | None = None, body: Json | None = None, png: bool = False,
    status: str = "200",
) -> Json:  # fmt: skip
    error = {"description": "Why not: {error}.", "content": _object({"error": TEXT})}
    answer: Json = {"image/png": {}} if png else {"application/json": {"schema": {"type": "object"}}}
    told: Json = {"summary": summary, "responses": {status: {"description": "OK", "content": answer}, "default": error}}
    if parameters:
        told["parameters"] = parameters
    if body:
        told["requestBody"] = {"required": True, "content": body}
    return told


def _object(properties: Json) -> Json:
    return {"application/json": {"schema": {"type": "object", "properties": properties}}}
