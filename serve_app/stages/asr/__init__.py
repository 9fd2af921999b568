"""Windows to text: Whisper on CTranslate2."""
