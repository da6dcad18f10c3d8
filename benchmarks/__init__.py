"""Measurements beside other engines, in the order of their data.

subjects  which models, prune  which zeros, cases  which single operators -> ONNX files and inputs
compiled  our artifact of a file, with what making it cost
engine    one engine in a process of its own, turns  the engines by turns, peaks  what the machine can do
rows      a row: all engines on one file, numbers compared
results   the JSON that rows accumulate in
goals     what is asked, report  Markdown, plots  pictures: made from the JSON alone
"""
