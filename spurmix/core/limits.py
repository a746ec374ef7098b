"""Limits of all readers. A file beyond a limit is refused before it fills the memory."""

from __future__ import annotations

MAX_JSON_BYTES = 1 << 28
"""Maximum size of a JSON, JSON Lines or TOML file."""

MAX_JSON_DEPTH = 100
"""Maximum number of nested arrays and objects in JSON and TOML."""

MAX_IMAGE_BYTES = 1 << 30
"""Maximum size of an image file."""

MAX_IMAGE_PIXELS = 1 << 27
"""Maximum number of pixels of an image. The header of a small, damaged file can claim any size."""

MAX_PROFILE_BYTES = 1 << 24
"""Maximum size of a color profile of an image. A larger profile is ignored."""

MAX_IDX_BYTES = 1 << 32
"""Maximum size of an array in MNIST's format, and of its file."""

MAX_TABLE_BYTES = 1 << 34
"""Maximum size of a CSV or Parquet file, and of its columns in memory."""

MAX_TABLE_ROWS = 1 << 27
"""Maximum number of rows of a table to pack."""

MAX_CSV_ROW_BYTES = 1 << 24
"""Maximum size of a row of a CSV file."""

MAX_VALUE_BYTES = 1 << 12
"""Maximum size of a path, label, attribute or split of a table. The longest path of Linux has this size."""

MAX_TEXT_BYTES = 1 << 24
"""Maximum size of a text of a table."""

MAX_REMOTE_TABLE_BYTES = 1 << 32
"""Maximum size of a table on another file system. It is read into memory."""

MAX_TOKENIZER_BYTES = 1 << 28
"""Maximum size of a file of a tokenizer."""
