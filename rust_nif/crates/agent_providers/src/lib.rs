//! Provider calls: OpenAI-compatible HTTP, the embedded local server, echo.
