"""Boards written as a run writes them."""

from bench_core.board import board as boards
from bench_core.board.files import LEADERBOARD
from bench_core.report import markdown

__all__ = ["write_board"]


def write_board(board, folder, traces=None):
    """Write a board with its page, and traces by file name."""
    boards.write_board(board, folder, {LEADERBOARD: markdown.markdown(board)}, traces)
