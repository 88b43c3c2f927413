import os
import sys

from django.conf import settings
from django.contrib import admin
from django.core.management import execute_from_command_line
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
    DEBUG=True,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    INSTALLED_APPS=[f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "messages", "sessions", "staticfiles")],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="a sample's",
    STATIC_URL="static/",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
)



def main():
    os.environ.update(DJANGO_SUPERUSER_USERNAME="admin", DJANGO_SUPERUSER_PASSWORD="42", DJANGO_SUPERUSER_EMAIL="admin@example.org")
    import django

    django.setup()
    urlpatterns.append(path("admin/", admin.site.urls))
    if not os.path.exists("db.sqlite3"):
        execute_from_command_line(["app.py", "migrate", "--verbosity", "0"])
        execute_from_command_line(["app.py", "createsuperuser", "--noinput"])
    execute_from_command_line(["app.py", *sys.argv[1:]])


urlpatterns = []
if __name__ == "__main__":
    main()
