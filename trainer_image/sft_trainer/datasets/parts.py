"""A pack in parts that go through the model one after the other: where memory is too small for all of it at once.

Documents do not see each other, so a pack may be divided between them: gradients of the parts sum up to that of the
pack. Pure; called by `batch`.
"""

Piece = tuple[int, int, int]
"""Sample, begin and length: as `Packs.pieces` gives them."""


def in_parts(pieces: list[Piece], *, limit: int) -> list[list[Piece]]:
    """Each of at most `limit` tokens, but for a document that is longer: it is alone. A pack of pads is one part.

    First-fit decreasing (Johnson, 1973): a part more is a pass through the model more.
    """
    parts: list[list[Piece]] = []
    rooms: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -piece[2]):
        length = piece[2]
        place = next((place for place, room in enumerate(rooms) if length <= room), None)
        if place is None:
            parts.append([piece])
            rooms.append(limit - length)
        else:
            parts[place].append(piece)
            rooms[place] -= length
    return parts or [[]]
