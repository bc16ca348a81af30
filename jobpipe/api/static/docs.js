// A file of its own, so that the page's Content-Security-Policy allows no inline script.
window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: document.body.dataset.spec,
    dom_id: "#swagger-ui",
    layout: "BaseLayout",
    presets: [SwaggerUIBundle.presets.apis],
    deepLinking: true,
    displayRequestDuration: true,
    tryItOutEnabled: true,
    defaultModelsExpandDepth: 0,
    validatorUrl: null, // its default sends the spec to a validator on the internet
  });
});
