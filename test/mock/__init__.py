"""The parts of feishu_mock.py: see its --help."""
