"""The parts: encoders, connectors, fusion, language models, and the roles they keep."""
