"""The Streamlit app: draws what `analysis` found; `streamlit run app` starts it."""
